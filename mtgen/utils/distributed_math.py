"""Losses over a batch that is gathered from all workers: gathering rows, and exact gradients under averaging engines.

W workers gather their rows and each computes the same loss L over the joint batch. Each backpropagates into its own
rows only, and the engine (DeepSpeed, DDP) averages the gradients of all workers: sum over workers / W.

1. Own rows: the workers' gradients add up to the gradient of L, so the average is 1/W of it. The loss is therefore W
   times L on every worker (`StepContext.mean` in `mtgen.tasks.base` has this factor).
2. A parameter that every row uses (a temperature): every worker already has its whole gradient, W times dL/ds by step
   1, and the average keeps the W. `divide_gradient(s, W)` removes it.
3. The logged value is a mean over workers too, so it would be W times L. `divide_value(loss, W)` makes it L and keeps
   the gradient.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of workers; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def divide_gradient(x: Tensor, divisor: float) -> Tensor:
    """Return `x` with its gradient divided by `divisor` (1 or more)."""
    return x / divisor + (1 - 1 / divisor) * x.detach()


def divide_value(x: Tensor, divisor: float) -> Tensor:
    """Return `x / divisor` with the gradient of `x` (`divisor`: 1 or more)."""
    return x / divisor + (1 - 1 / divisor) * (x - x.detach())


def gather_rows(x: Tensor) -> Tensor:
    """Concatenate `[n,...]` of every worker in the order of ranks, without gradients; n is the same on all of them."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


class GatherRowsWithGradient(torch.autograd.Function):
    """`gather_rows` whose backward returns the gradient of this worker's own rows.

    The backward exchanges nothing: every worker computes the loss of the whole joint batch, so the gradient of its own
    rows is complete.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Gather `[n,...]` of every worker -> `[W*n,...]`."""
        ctx.rows = len(x)
        return gather_rows(x).clone() if world_size() > 1 else x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Select this worker's rows of the gradient `[W*n,...]`."""
        (gradient,) = gradients
        rank = dist.get_rank() if world_size() > 1 else 0
        return gradient[rank * ctx.rows : (rank + 1) * ctx.rows]


def gather_rows_with_gradient(x: Tensor) -> Tensor:
    """Concatenate `[n,...]` of every worker; this worker's own rows carry gradients."""
    return GatherRowsWithGradient.apply(x)
