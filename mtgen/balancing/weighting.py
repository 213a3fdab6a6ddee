"""What a weighting is: from the Gramian of the tasks' gradients to one weight a task."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

WeightingFunction = Callable[[Tensor], Tensor]
"""The least that the gate takes for a weighting: `[K,K]` Gramian -> `[K]` weights."""


class Weighting:
    """From the Gramian to one weight a task. Subclasses live in one file each and register themselves in `config.WEIGHTINGS`.

    A call gets the `[K,K]` Gramian of the tasks that have a gradient in this step: on the CPU, float64, finite, its diagonal positive with
    mean 1 (so that no weighting depends on the scale of the losses), the same on every worker. It returns `[K]` weights: by convention 1
    for each of K equal, orthogonal gradients. Whoever draws at random seeds from the Gramian: all workers have to draw alike.

    Class attributes:
        plain: gives weight 1 to all, so that the gate need not ask.
        reads_losses: needs `losses`; possible at the discriminator's features only.
        takes_preference: has a use of its own for `preference`; otherwise the gate multiplies its weights by it.

    Attributes, which the gate sets before each call:
        active: `[K]` which of all the gate's `tasks` tasks the rows are; `None`: all of them.
        preference: `[K]` how much each counts, mean 1 over all tasks; `None`: all alike.
        losses: `[K]` the tasks' losses, means over the global batch, each times its tasks.TASK.weight.
        images: samples of the global batch that this call stands for.
        memory: what is kept from call to call, one row a task of the gate; it goes into the checkpoint.
    """

    plain: ClassVar[bool] = False
    reads_losses: ClassVar[bool] = False
    takes_preference: ClassVar[bool] = False

    active: Tensor | None = None
    tasks: int = 0
    preference: Tensor | None = None
    losses: Tensor | None = None
    images: float = 1.0

    def __init__(self) -> None:
        self.memory: dict[str, Tensor] = {}

    def __call__(self, gramian: Tensor) -> Tensor:
        """`[K,K]` Gramian -> `[K]` weights."""
        raise NotImplementedError

    def rows(self, gramian: Tensor) -> Tensor:
        """`[K]` numbers of the Gramian's rows among all tasks of the gate."""
        return torch.arange(len(gramian)) if self.active is None else self.active

    def preference_or_ones(self, gramian: Tensor) -> Tensor:
        """`[K]` the preference, 1 for each where there is none."""
        return torch.ones_like(gramian[0]) if self.preference is None else self.preference.to(gramian)

    def buffer(self, name: str, gramian: Tensor, fill: float = 0.0, square: bool = False) -> Tensor:
        """A tensor of `memory` over all tasks of the gate, `[N]` or `[N,N]`, made now where there is none yet; change it in place."""
        size = max(self.tasks, len(gramian))
        if name not in self.memory:
            self.memory[name] = torch.full((size, size) if square else (size,), fill, dtype=torch.float64)
        return self.memory[name]

    def task_losses(self, gramian: Tensor) -> Tensor:
        """`[K]` the losses, float64."""
        if self.losses is None:
            raise RuntimeError(f"{type(self).__name__} weighs by losses, and this gate was told none (Gate.set_losses)")
        return self.losses.to(gramian)
