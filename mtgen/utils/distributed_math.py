"""Rows of all workers: gathered, with gradients that return to the worker whose rows they are.

A loss over a joint batch is a sum over its rows, and each worker computes the terms of its own rows only: W workers
with n rows each compare `[n,d]` with the `[W*n,d]` of all, which takes O(n W n) memory instead of O((W n)^2). A row
also enters the terms of other workers' rows; its gradient is therefore the sum over all workers (`GatherRows`).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of workers; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this worker; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


class GatherRows(torch.autograd.Function):
    """Concatenates the rows of all workers; its backward adds up what the workers' losses ask of each row.

    Collective in both directions: every worker has to call both, in the same order.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Gather `[n,...]` of every worker -> `[W*n,...]`."""
        if world_size() == 1:
            return x.view_as(x)
        gathered = x.new_empty((world_size() * len(x), *x.shape[1:]))
        dist.all_gather_single(gathered, x.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Sum the workers' gradients `[W*n,...]` of this worker's own rows -> `[n,...]`."""
        (gradient,) = gradients
        if world_size() == 1:
            return gradient
        own = gradient.new_empty((len(gradient) // world_size(), *gradient.shape[1:]))
        dist.reduce_scatter_single(own, gradient.contiguous())
        return own


def gather_rows(x: Tensor) -> Tensor:
    """Concatenate `[n,...]` of every worker in the order of ranks; n is the same on all of them."""
    return GatherRows.apply(x)
