"""Mixed precision on every device, torch's meta device included."""

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_LOWERED = {
    torch.conv2d,
    torch.bmm,
    torch.mm,
    torch.matmul,
    Tensor.__matmul__,
    Tensor.matmul,
    F.linear,
    F.scaled_dot_product_attention,
}
"""Functions that autocast runs in half precision, as far as the networks use them."""
_RAISED = {
    torch.log_softmax,
    torch.softmax,
    F.binary_cross_entropy_with_logits,
    F.cross_entropy,
    F.log_softmax,
    F.normalize,
    F.softmax,
    F.softplus,
    Tensor.exp,
    Tensor.log,
    Tensor.log_softmax,
    Tensor.pow,
    Tensor.softmax,
    Tensor.sum,
}
"""Functions that autocast runs in fp32."""


def autocast(
    device: torch.device, dtype: torch.dtype | None = None, enabled: bool = True
) -> AbstractContextManager[object]:
    """`torch.autocast` for a device; on the meta device, for which torch has none, the same casts."""
    if device.type == "meta":
        return _MetaAutocast(dtype if enabled else None)
    return torch.autocast(device.type, dtype, enabled=enabled)


class _MetaAutocast(TorchFunctionMode):
    """Casts as `torch.autocast` does on a GPU, so that costs can be counted without one (`preflight.cost`).

    Weights are cast anew at each use, as on a GPU: torch caches leaves only, and our layers pass views of theirs.

    Args:
        dtype: of the lowered functions; `None`: no function is cast.
    """

    _active: list["_MetaAutocast"] = []

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype

    def __enter__(self) -> "_MetaAutocast":
        self._active.append(self)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._active.remove(self)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._active[-1].dtype is not None:
            if func in _LOWERED:
                args = [_cast(value, self._active[-1].dtype) for value in args]
            elif func in _RAISED:
                args = [_cast(value, torch.float32) for value in args]
        return func(*args, **kwargs)


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    """A floating-point tensor of at most 32 bits in another type; other values as they are."""
    is_cast = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
    return value.to(dtype) if is_cast else value
