"""A pretended accelerator: torch's meta device, with every crossing between it and the host counted.

A tensor on the meta device has a shape and no values, so a whole training step of any size takes milliseconds. A mode
watches every operation, in the forward and in the backward: copies from the host and back, decisions that need a value
from the device, and host tensors that meet device tensors, all of which a GPU would wait for or refuse. A copy back
gives invented values. Kernels, streams and timing are not pretended.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")
PACKAGE = f"{Path(__file__).parents[2]}/mtgen/"
_aten = torch.ops.aten


def _place() -> str:
    """The innermost line of mtgen that is being executed."""
    frame = sys._getframe(2)
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back  # type: ignore[assignment]
    return f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno}" if frame else "outside of mtgen"


@dataclass
class Crossings:
    """What a GPU would have waited for or refused: line of mtgen -> how often.

    Attributes:
        copies: copies from the host to the device that let the host continue.
        blocking: copies from the host for which it waits until the device has done all its work.
        syncs: values or sizes that the host gets from the device.
        mixed: operations on tensors of both.
        shapes: number of rows of each convolution's input, in order.
        kernels: operations that launch a kernel.
    """

    copies: Counter[str] = field(default_factory=Counter)
    blocking: Counter[str] = field(default_factory=Counter)
    syncs: Counter[str] = field(default_factory=Counter)
    mixed: Counter[str] = field(default_factory=Counter)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    kernels: int = 0

    def clear(self) -> None:
        """Forget everything so far."""
        for counter in (self.copies, self.blocking, self.syncs, self.mixed):
            counter.clear()
        self.shapes.clear()
        self.kernels = 0


class _Operations(TorchDispatchMode):
    def __init__(self, found: Crossings) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [tensor for tensor in tensors if tensor.device == DEVICE]
        if func is _aten._to_copy.default and not here and kwargs.get("device") == DEVICE:
            (self.found.copies if kwargs.get("non_blocking") else self.found.blocking)[_place()] += 1
        elif here:
            if (invented := self._value(func, args, kwargs)) is not None:
                self.found.syncs[f"{_place()} {func}"] += 1
                return invented
            self._watch(func, args, tensors)
        return func(*args, **kwargs)

    def _watch(self, func: Any, args: Any, tensors: list[Tensor]) -> None:
        if any(tensor.device != DEVICE and tensor.dim() for tensor in tensors):
            self.found.mixed[f"{_place()} {func}"] += 1
        if func is _aten.convolution.default:
            self.found.shapes.append(tuple(args[0].shape))
        self.found.kernels += not (func.is_view or func in (_aten.detach.default, _aten.empty.memory_format))

    @staticmethod
    def _value(func: Any, args: Any, kwargs: Any) -> Any:
        """Invented values for an operation that needs the device's; `None`: it needs none."""
        first = args[0]
        if func is _aten._local_scalar_dense.default:
            return torch.ones((), dtype=first.dtype).item()
        if func is _aten._to_copy.default and torch.device(kwargs.get("device") or DEVICE) != DEVICE:
            made = torch.ones(first.shape, dtype=kwargs.get("dtype") or first.dtype)
            return (
                made + torch.eye(len(made), dtype=made.dtype) if made.dim() == 2 and len(made) == len(made.T) else made
            )
        if func in (_aten.nonzero.default, _aten.masked_select.default):
            return torch.empty(max(len(first) // 2, 1), first.dim(), dtype=torch.int64, device=DEVICE)
        if func is _aten.equal.default:
            return True
        return None


def _counting(make: Callable[..., Tensor], found: Crossings) -> Callable[..., Tensor]:
    """A function that makes a tensor of Python numbers, which is a copy from the host where it is on the device."""

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        made = make(*args, **kwargs)
        if made.device == DEVICE and not (make is _AS_TENSOR and isinstance(args[0], Tensor)):
            found.blocking[_place()] += 1
        return made

    return counted


_AS_TENSOR = torch.as_tensor


@contextmanager
def watched() -> Iterator[Crossings]:
    """Watch all operations in this context, those of the backward included."""
    found = Crossings()
    with pytest.MonkeyPatch.context() as patch, _Operations(found):
        for owner, name in ((torch, "tensor"), (torch, "as_tensor"), (Tensor, "new_tensor")):
            patch.setattr(owner, name, _counting(getattr(owner, name), found))
        yield found
