"""Weightings: from the Gramian of the tasks' gradients to one weight per task."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

WeightingFunction = Callable[..., Tensor]
"""A weighting: `(gramian, context)` for subclasses of `Weighting`; anything else is called with the Gramian alone."""


@dataclass(frozen=True)
class GateContext:
    """What a weighting knows about a step besides the Gramian.

    Attributes:
        active: `[K]` int64: which of the gate's tasks the Gramian's rows are. Tasks without a gradient in this step are
            left out.
        num_tasks: number of all tasks of the gate.
        preference: `[K]` float64: how much each task counts; the mean over all tasks of the gate is 1.
        images: samples of the global batch that this step stands for.
        losses: `[K]` float64: the tasks' losses, means over the global batch, each times its `tasks.TASK.weight`;
            `None` unless the weighting has `reads_losses`.
    """

    active: Tensor
    num_tasks: int
    preference: Tensor
    images: float = 1.0
    losses: Tensor | None = None

    @staticmethod
    def of_all(num_tasks: int, images: float = 1.0, losses: Tensor | None = None) -> "GateContext":
        """Return the context in which all tasks have a gradient and count the same."""
        return GateContext(
            torch.arange(num_tasks), num_tasks, torch.ones(num_tasks, dtype=torch.float64), images, losses
        )

    @property
    def task_losses(self) -> Tensor:
        """`[K]` the losses.

        Raises:
            RuntimeError: the gate has none.
        """
        if self.losses is None:
            raise RuntimeError("this weighting reads the tasks' losses: set `reads_losses = True` in its class")
        return self.losses


class Weighting:
    """From the Gramian to one weight per task. A subclass is one file that registers itself in `config.WEIGHTINGS`.

    `gramian` has one row per task that has a gradient in this step: `[K,K]`, on the CPU, float64, finite, the same on
    every worker. Its diagonal is positive with mean 1, so no weighting depends on the scale of the losses. The result
    is `[K]`; by convention each weight is 1 for K equal, orthogonal gradients. All workers must compute the same
    weights: take the seed of random numbers from the Gramian.

    Class attributes:
        reads_losses: whether it needs `context.losses`; possible at the discriminator's features only.
        takes_preference: whether it uses `context.preference` itself; otherwise the gate multiplies the weights by it.

    Attributes:
        memory: tensors kept from call to call, with one row per task of the gate; part of the checkpoint.
    """

    reads_losses: ClassVar[bool] = False
    takes_preference: ClassVar[bool] = False

    def __init__(self) -> None:
        self.memory: dict[str, Tensor] = {}

    def __call__(self, gramian: Tensor, context: GateContext) -> Tensor:
        """`[K,K]` Gramian -> `[K]` weights."""
        raise NotImplementedError

    def buffer(self, name: str, context: GateContext, fill: float = 0.0, square: bool = False) -> Tensor:
        """Return a tensor of `memory` over all tasks of the gate, to be changed in place; created at the first call.

        Args:
            fill: initial value.
            square: `[N,N]` instead of `[N]`.
        """
        if name not in self.memory:
            shape = (context.num_tasks, context.num_tasks) if square else (context.num_tasks,)
            self.memory[name] = torch.full(shape, fill, dtype=torch.float64)
        return self.memory[name]
