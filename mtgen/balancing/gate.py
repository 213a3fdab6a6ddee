"""The gradient gate: where one tensor feeds several tasks, arbitrate between their gradients on the way back."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mtgen.balancing.weighting import Weighting


class GradientGate(torch.autograd.Function):
    """Hand shared tensors to K tasks; on the way back, arbitrate between their gradients.

    Forward: P tensors -> K views of each, task by task. Backward: K gradients of the same shapes -> one of each.
    The K x K Gramian, over all P tensors, is summed over the workers, so every worker chooses the same weights.
    Source: Sener and Koltun 2018 (gradients at the shared representation); Quinton and Rey 2024 (Gramian weightings).
    """

    @staticmethod
    def forward(ctx: Any, gate: "Gate", *shared: Tensor) -> tuple[Tensor, ...]:
        ctx.gate = gate
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for _ in gate.tasks for tensor in shared)

    @staticmethod
    def backward(ctx: Any, *flat: Tensor | None) -> tuple[Any, ...]:
        tasks = len(ctx.gate.tasks)
        parts = len(flat) // tasks
        gradients = [[flat[task * parts + part] for task in range(tasks)] for part in range(parts)]
        weights = ctx.gate.arbitrate(gramian(gradients))
        return (None, *(_combine(of_tasks, weights) for of_tasks in gradients))


def gramian(gradients: list[list[Tensor | None]]) -> Tensor:
    """Inner products of K tasks' gradients over P tensors (`gradients[part][task]`): `[K,K]` float32, or float64 of float64."""
    first = next(g for of_tasks in gradients for g in of_tasks if g is not None)
    kind = torch.float64 if first.dtype == torch.float64 else torch.float32
    products = torch.zeros(len(gradients[0]), len(gradients[0]), dtype=kind, device=first.device)
    for of_tasks in gradients:
        here = [task for task, gradient in enumerate(of_tasks) if gradient is not None]
        flat = [of_tasks[task].to(kind).flatten() for task in here]  # type: ignore[union-attr]
        for i, a in enumerate(here):
            for j, b in enumerate(here[: i + 1]):
                products[a, b] += torch.dot(flat[i], flat[j])
    return products + products.tril(-1).T


def _combine(of_tasks: list[Tensor | None], weights: list[Tensor] | None) -> Tensor | None:
    """The weighted sum of the gradients that exist; the plain sum where `weights` is `None`."""
    here = [(task, gradient) for task, gradient in enumerate(of_tasks) if gradient is not None]
    if not here:
        return None
    total = None
    for task, gradient in here:
        term = gradient if weights is None else gradient * weights[task].to(gradient.dtype)
        total = term if total is None else total + term
    return total


class Gate:
    """One place where K tasks meet: its weighting, and what its last backward saw.

    Args:
        tasks: names, in the order in which the views are handed out.
        weighting: from the Gramian to weights; `None` for the plain sum (no gate at all).
        group: process group over which the Gramian is summed; `None` for the default one where there is one.

    Attributes:
        last: `[K,K]` Gramian and `[K]` weights of the last backward, detached; `None` before the first.
    """

    def __init__(self, tasks: list[str], weighting: Weighting | None, group: Any = None) -> None:
        self.tasks, self.weighting, self.group = tasks, weighting, group
        self.reads = getattr(weighting, "reads_gramian", True)
        self.last: tuple[Tensor, Tensor] | None = None

    def __call__(self, shared: list[Tensor]) -> dict[str, list[Tensor]]:
        """P shared tensors -> for each task, its own P views."""
        if self.weighting is None or len(self.tasks) < 2 or not any(tensor.requires_grad for tensor in shared):
            return {task: shared for task in self.tasks}
        views = GradientGate.apply(self, *shared)
        parts = len(shared)
        return {task: list(views[k * parts : (k + 1) * parts]) for k, task in enumerate(self.tasks)}

    def arbitrate(self, products: Tensor) -> list[Tensor] | None:
        """`[K,K]` Gramian of this worker -> K weights that every worker agrees on. A task without a gradient takes no part."""
        if dist.is_initialized() and dist.get_world_size(self.group) > 1:
            dist.all_reduce(products, group=self.group)
        weights = torch.ones_like(products[0])
        if self.reads:  # equal weights need no look at the Gramian, hence no host sync
            active = (products.diagonal() != 0).nonzero().flatten()  # NaN counts as active
            seen = products[active][:, active]
            if len(active) and bool(torch.isfinite(seen).all()):  # a step that is not finite is skipped as a whole
                weights = torch.zeros_like(weights).index_copy(0, active, self.weighting(seen).to(weights))  # type: ignore[misc]
        self.last = (products.detach(), weights.detach())
        return list(weights) if self.reads else None

    def report(self) -> dict[str, Tensor]:
        """Numbers of the last backward, for the tasks that had a gradient: `norm_TASK`, `weight_TASK`, `cosine_A_B`."""
        if self.last is None:
            return {}
        products, weights = self.last
        norms = products.diagonal().clamp_min(0).sqrt()
        numbers: dict[str, Tensor] = {}
        here = norms.nonzero().flatten().tolist()
        for a in here:
            numbers[f"norm_{self.tasks[a]}"], numbers[f"weight_{self.tasks[a]}"] = norms[a], weights[a]
            for b in (b for b in here if b < a):
                numbers[f"cosine_{self.tasks[b]}_{self.tasks[a]}"] = products[a, b] / (norms[a] * norms[b])
        return numbers
