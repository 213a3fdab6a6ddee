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
        active: `[K]` int64: which of the gate's tasks the Gramian's rows are.
        num_tasks: number of all tasks of the gate.
        preference: `[K]` float64: how much each task counts; the mean over all tasks of the gate is 1.
        images: samples of the global batch that this step stands for.
        losses: `[K]` float64: the tasks' losses, means over the global batch, each times its `tasks.TASK.weight`;
            `None` unless the weighting has `reads_losses`.
        present: `[K]` bool: which of the rows have a gradient in this step; `None`: all. Only a weighting that is
            `on_device` gets others.
    """

    active: Tensor
    num_tasks: int
    preference: Tensor
    images: float = 1.0
    losses: Tensor | None = None
    present: Tensor | None = None

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

    @property
    def count(self) -> Tensor | int:
        """Number of rows with a gradient."""
        return len(self.active) if self.present is None else self.present.sum()

    def sum(self, values: Tensor) -> Tensor:
        """`[K]` -> the sum over the rows with a gradient."""
        return values.sum() if self.present is None else torch.where(self.present, values, 0.0).sum()

    def mean(self, values: Tensor) -> Tensor:
        """`[K]` -> the mean over the rows with a gradient."""
        return self.sum(values) / self.count

    def softmax(self, values: Tensor) -> Tensor:
        """`[K]` -> the softmax over the rows with a gradient; 0 for the others."""
        if self.present is not None:
            values = torch.where(self.present, values, -torch.inf)
        return torch.softmax(values, 0)

    def keep(self, buffer: Tensor, values: Tensor) -> None:
        """Write `[K]` values into a buffer over all tasks, for the rows with a gradient."""
        if self.present is not None:
            values = torch.where(self.present, values, buffer[self.active])
        buffer[self.active] = values


class Weighting:
    """From the Gramian to one weight per task. A subclass is one file that registers itself in `config.WEIGHTINGS`.

    `gramian` has one row per task that has a gradient in this step: `[K,K]`, on the CPU, float64, finite, the same on
    every worker. Its diagonal is positive with mean 1, so no weighting depends on the scale of the losses. The result
    is `[K]`; by convention each weight is 1 for K equal, orthogonal gradients. All workers must compute the same
    weights: take the seed of random numbers from the Gramian.

    Class attributes:
        reads_losses: whether it needs `context.losses`; possible at the discriminator's features only.
        takes_preference: whether it uses `context.preference` itself; otherwise the gate multiplies the weights by it.
        on_device: whether it computes where the gradients are, by operations that need no value on the host: then the
            host does not wait for the GPU. It gets a row for every task of the gate, with zeros where a task has no
            gradient (`context.present`), and, in a step that is not finite, rows without any; its weights for those are
            not used. `GateContext` has sums over the rows that count.

    Attributes:
        memory: tensors kept from call to call, with one row per task of the gate; part of the checkpoint.
    """

    reads_losses: ClassVar[bool] = False
    takes_preference: ClassVar[bool] = False
    on_device: ClassVar[bool] = False

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
        device = context.preference.device
        if name not in self.memory:
            shape = (context.num_tasks, context.num_tasks) if square else (context.num_tasks,)
            self.memory[name] = torch.full(shape, fill, dtype=torch.float64, device=device)
        self.memory[name] = self.memory[name].to(device)  # a checkpoint's is on the CPU
        return self.memory[name]
