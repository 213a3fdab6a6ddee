"""Small constant tensors on a device, copied there once: every further copy would wait for all of the device's work."""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`[n]` numbers, the same tensor at every call: do not write to it."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
