"""Mixed precision on every device, torch's meta device included."""

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast(
    device: torch.device, dtype: torch.dtype | None = None, enabled: bool = True
) -> AbstractContextManager[object]:
    """`torch.autocast` for a device; nothing on the meta device, for which torch has none.

    Tensors on the meta device have shapes and no values, so costs are counted there (`preflight.cost`) in fp32.
    """
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, dtype, enabled=enabled)
