"""The gradient gate: where one tensor feeds several tasks, arbitrate between their gradients on the way back."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mtgen.balancing.gate_stats import GateStatistics
from mtgen.balancing.gramian import GRAMIAN_SOURCES, FeatureGramian, InputHooks
from mtgen.balancing.weighting import Weighting, WeightingFunction
from mtgen.balancing.weightings.equal import Equal


class GradientGate(torch.autograd.Function):
    """Hand shared tensors to K tasks; on the way back, arbitrate between their gradients.

    Forward: P tensors -> K views of each, task by task. Backward: K gradients of the same shapes -> one of each.
    The K x K Gramian, over all P tensors, is summed over the workers, so every worker chooses the same weights.
    Source: Sener and Koltun 2018 (gradients at the shared representation); Quinton and Rey 2024 (Gramian weightings).
    """

    @staticmethod
    def forward(ctx: Any, gate: "Gate", sight: FeatureGramian, *shared: Tensor) -> tuple[Tensor, ...]:
        """Shared tensors `[..]` -> a view of each for every task: all of the first task, then all of the second, ..."""
        ctx.gate, ctx.sight = gate, sight
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for _ in gate.tasks for tensor in shared)

    @staticmethod
    def backward(ctx: Any, *flat: Tensor | None) -> tuple[Any, ...]:
        """The views' gradients, in the same order -> one gradient for each shared tensor, weighted by what the gate decides."""
        tasks = len(ctx.gate.tasks)
        parts = len(flat) // tasks
        gradients = [[flat[task * parts + part] for task in range(tasks)] for part in range(parts)]
        weights = ctx.gate.arbitrate(ctx.sight.products(gradients, ctx.gate.workers, ctx.gate.group))
        return (None, None, *(_combine(of_tasks, weights) for of_tasks in gradients))


def _combine(of_tasks: list[Tensor | None], weights: list[float] | None) -> Tensor | None:
    """The weighted sum of the gradients that exist, in one pass over each; the plain sum where `weights` is `None`."""
    total, fresh = None, False
    for gradient, weight in zip(of_tasks, weights or [1.0] * len(of_tasks), strict=True):
        if gradient is None:
            continue
        if total is None:
            total, fresh = (gradient, False) if weight == 1 else (gradient * weight, True)
        elif fresh:
            total.add_(gradient, alpha=weight)
        else:
            total, fresh = torch.add(total, gradient, alpha=weight), True
    return total


class Gate:
    """One place where K tasks meet: its weighting, and what its backwards saw.

    With gradient accumulation every micro-batch is arbitrated by itself.

    Args:
        tasks: names, in the order in which the views are handed out.
        weighting: from the Gramian to weights; `None` for the plain sum (no gate at all).
        group: process group over which the Gramian is summed; `None` for the default one where there is one.
        groups: name -> tasks whose gradients are summed and arbitrated as one.
        sight: what the Gramian sees: "features", "pooled" or "layer".
        taps: the last shared layers, for "layer".
        preference: how much a task (or group) counts, 1 where it is not named.
        images: samples of the global batch that one backward stands for.
        warmup: images over which the weights go over from equal to the weighting's.
        average: half-life of the Gramian's moving average, in images; 0: none.

    Attributes:
        tasks: what is arbitrated between: tasks, or groups of them.
        last: `[K,K]` Gramian and `[K]` weights of the last backward, detached; `None` before the first.
        loss_scale: factor of all gradients that is divided out (fp16), as the optimizer holds it.
        share: factor of all gradients by which they exceed those of the global loss: the number of workers.
    """

    def __init__(
        self,
        tasks: list[str],
        weighting: WeightingFunction | None,
        group: Any = None,
        *,
        groups: Mapping[str, list[str]] | None = None,
        sight: str = "features",
        taps: InputHooks | None = None,
        preference: Mapping[str, float] | None = None,
        images: float = 1.0,
        warmup: float = 0.0,
        average: float = 0.0,
    ) -> None:
        of = {task: name for name, members in (groups or {}).items() for task in members}
        self.unit = {task: of.get(task, task) for task in tasks}
        self.tasks = list(dict.fromkeys(self.unit.values()))
        self.weighting = weighting
        self.group = group
        self.sight = GRAMIAN_SOURCES[sight]
        self.taps = taps
        self.images = images
        self.warmup = warmup
        self.average = average
        liked = torch.tensor([(preference or {}).get(task, 1.0) for task in self.tasks], dtype=torch.float64)
        self.preference = liked / liked.mean() if bool((liked != liked[:1]).any()) else None
        self.plain = isinstance(weighting, Equal) and self.preference is None
        self.loss_scale: Tensor | None = None
        self.share = 1.0
        self.last: tuple[Tensor, Tensor] | None = None
        self.record = GateStatistics(self.tasks)
        self.losses: dict[str, Tensor] | None = None
        self.memory: dict[str, Tensor] = {"images": torch.zeros((), dtype=torch.float64)}

    @property
    def workers(self) -> int:
        """Over how many workers the Gramian is summed."""
        return dist.get_world_size(self.group) if dist.is_initialized() else 1

    def __call__(self, shared: list[Tensor]) -> dict[str, list[Tensor]]:
        """P shared tensors -> for each task, its own P views."""
        if self.weighting is None or len(self.tasks) < 2 or not any(tensor.requires_grad for tensor in shared):
            return {task: shared for task in self.unit}
        views = GradientGate.apply(self, self.sight(shared, self.taps), *shared)
        parts = len(shared)
        of = {unit: list(views[k * parts : (k + 1) * parts]) for k, unit in enumerate(self.tasks)}
        return {task: of[unit] for task, unit in self.unit.items()}

    def set_losses(self, losses: Mapping[str, Tensor]) -> None:
        """Take the tasks' losses of the forward whose backward comes next, for weightings that read them."""
        if getattr(self.weighting, "reads_losses", False):
            self.losses = {}
            for task, unit in self.unit.items():
                if task in losses:
                    loss = losses[task].detach().double()
                    self.losses[unit] = self.losses[unit] + loss if unit in self.losses else loss

    def arbitrate(self, products: Tensor) -> list[float] | None:
        """`[K,K]` Gramian, summed over the workers -> K weights that every worker agrees on; `None`: 1 for all.

        A task without a gradient takes no part.
        """
        if self.loss_scale is not None or self.share != 1:
            products = products / (self.share * (1.0 if self.loss_scale is None else self.loss_scale)) ** 2
        # equal weights need no look at the Gramian, hence no host sync
        chosen = None if self.plain else self._weigh(products.to("cpu", torch.float64))
        self.last = (products.detach(), torch.ones_like(products[0]) if chosen is None else chosen.to(products))
        self.record.add(*self.last)
        return None if chosen is None else chosen.tolist()

    def _weigh(self, products: Tensor) -> Tensor:
        """`[K,K]` -> `[K]`, on the CPU in float64; 1 for all in a step that is not finite, which is skipped as a whole."""
        weights, losses = torch.ones_like(products[0]), self._all_losses()
        here = (products.diagonal() != 0).nonzero().flatten()  # NaN counts as a gradient
        if (
            not bool(torch.isfinite(products).all())
            or not len(here)
            or (losses is not None and not bool(torch.isfinite(losses).all()))
        ):
            return weights
        if self.average:
            products = self._averaged(products)
        seen = products[here][:, here]
        seen = seen / seen.diagonal().mean()
        chosen = self._ask(seen, here, None if losses is None else losses[here])
        images = self.memory["images"]
        if images < self.warmup:
            begin = torch.ones_like(chosen) if self.preference is None else self.preference[here]
            chosen = begin + (chosen - begin) * (images / self.warmup)
        images += self.images
        return torch.zeros_like(weights).index_copy(0, here, chosen)

    def _ask(self, seen: Tensor, here: Tensor, losses: Tensor | None) -> Tensor:
        """The weighting's answer for the tasks `here`, their preference worked in."""
        rule, liked = self.weighting, None if self.preference is None else self.preference[here]
        assert rule is not None
        if isinstance(rule, Weighting):
            rule.active, rule.tasks, rule.preference, rule.losses, rule.images = (
                here,
                len(self.tasks),
                liked,
                losses,
                self.images,
            )
        chosen = rule(seen).detach().to("cpu", torch.float64)
        if chosen.shape != here.shape:
            raise ValueError(
                f"weighting {type(rule).__name__}: gave weights of shape {tuple(chosen.shape)} for {len(here)} tasks"
            )
        return chosen if liked is None or getattr(rule, "takes_preference", False) else chosen * liked

    def _averaged(self, products: Tensor) -> Tensor:
        """The Gramian's moving average; a task that is missing counts as a zero gradient, so that the average stays a Gramian."""
        if "gramian" not in self.memory:
            self.memory |= {"gramian": torch.zeros_like(products), "averaged": torch.zeros((), dtype=torch.float64)}
        decay = 0.5 ** (self.images / self.average)
        self.memory["gramian"].mul_(decay).add_(products, alpha=1 - decay)
        self.memory["averaged"].mul_(decay).add_(1 - decay)
        return self.memory["gramian"] / self.memory["averaged"]

    def _all_losses(self) -> Tensor | None:
        """`[K]` losses, means over the workers, if the weighting reads them; collective."""
        if not getattr(self.weighting, "reads_losses", False):
            return None
        if self.losses is None:
            raise RuntimeError(
                f"weighting {type(self.weighting).__name__} reads losses, and this gate was told none (Gate.set_losses)"
            )
        first = next(iter(self.losses.values()))
        zero = torch.zeros((), dtype=torch.float64, device=first.device)
        losses = torch.stack([self.losses.get(task, zero) for task in self.tasks])
        if self.workers > 1:
            dist.all_reduce(losses, group=self.group)
        return losses.cpu() / self.workers

    def report(self) -> dict[str, float]:
        """Means of what the backwards since the last report saw (`GateStatistics.report`)."""
        return self.record.report()

    def state(self) -> dict[str, Tensor]:
        """All that is kept from step to step, the same on every worker."""
        kept = {f"weighting/{name}": tensor for name, tensor in getattr(self.weighting, "memory", {}).items()}
        return {name: tensor.clone() for name, tensor in ({} if self.weighting is None else self.memory | kept).items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self.memory |= {name: tensor.clone() for name, tensor in state.items() if not name.startswith("weighting/")}
        if isinstance(self.weighting, Weighting):
            self.weighting.memory = {
                n.removeprefix("weighting/"): t.clone() for n, t in state.items() if n.startswith("weighting/")
            }
