"""Many small tensors from the host to a device in one copy, for which the host does not wait."""

from collections.abc import Mapping

import torch
from torch import Tensor

ALIGNMENT = 8
"""Bytes to which each tensor is aligned in the common buffer: the size of the largest element."""


def copy_packed(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copy tensors on the CPU to a device; on the CPU they are returned as they are.

    All bytes go into one page-locked buffer, whose copy is queued without waiting for work that the device has left
    (a copy from ordinary memory waits). torch's allocator keeps the buffer until the copy is done.
    """
    if device.type == "cpu":
        return dict(tensors)
    begins, size = {}, 0
    for name, tensor in tensors.items():
        begins[name] = size
        size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    buffer = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for name, tensor in tensors.items():
        _part(buffer, begins[name], tensor).copy_(tensor)
    there = buffer.to(device, non_blocking=True)
    return {name: _part(there, begins[name], tensor) for name, tensor in tensors.items()}


def _part(buffer: Tensor, begin: int, like: Tensor) -> Tensor:
    """The bytes of `buffer` from `begin` on, as a tensor of the same type and shape as `like`."""
    return buffer[begin : begin + like.nbytes].view(like.dtype).view(like.shape)
