"""The gradient gate: it arbitrates between the gradients of tasks that share a tensor (see docs/balancing.md)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mtgen.balancing.gate_stats import GateStatistics
from mtgen.balancing.gramian import GRAMIAN_SOURCES, FeatureGramian, InputHooks, RowSlice
from mtgen.balancing.weighting import GateContext, Weighting, WeightingFunction
from mtgen.balancing.weightings.equal import Equal
from mtgen.networks.device_constants import constant

Weights = Sequence[float | Tensor]
"""One weight per task: numbers, or 0-dimensional tensors on a device, whose values the host does not know."""


class GradientGate(torch.autograd.Function):
    """Hand shared tensors to K tasks; in the backward, arbitrate between the tasks' gradients.

    Forward: P tensors -> K views of each, task by task. Backward: K gradients of the same shapes -> one of each.
    The K x K Gramian over all P tensors is summed over the workers, so every worker chooses the same weights.
    Source: Sener and Koltun 2018 (gradients at the shared representation); Quinton and Rey 2024 (Gramian weightings).
    """

    @staticmethod
    def forward(ctx: Any, gate: "Gate", source: FeatureGramian, *shared: Tensor) -> tuple[Tensor, ...]:
        """Shared tensors `[..]` -> a view of each per task: all of the first task, then all of the second, ..."""
        ctx.gate = gate
        ctx.source = source
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for _ in gate.tasks for tensor in shared)

    @staticmethod
    def backward(ctx: Any, *flat: Tensor | None) -> tuple[Any, ...]:
        """The views' gradients, in the same order -> the weighted sum for each shared tensor."""
        tasks = len(ctx.gate.tasks)
        parts = len(flat) // tasks
        gradients = [[flat[task * parts + part] for task in range(tasks)] for part in range(parts)]
        weights = ctx.gate.arbitrate(ctx.source.compute(gradients, ctx.gate.workers, ctx.gate.process_group))
        return (None, None, *(_combine(of_tasks, weights) for of_tasks in gradients))


def _combine(of_tasks: list[Tensor | None], weights: Weights | None) -> Tensor | None:
    """Return the weighted sum of the gradients that exist, in one pass over each; `weights=None`: the plain sum."""
    total = None
    owned = False  # whether `total` is a new tensor, which may be changed in place
    for gradient, weight in zip(of_tasks, weights or [1.0] * len(of_tasks), strict=True):
        if gradient is None:
            continue
        if isinstance(weight, Tensor):  # on the device; its value is not known here
            total = gradient * weight if total is None else total.addcmul_(gradient, weight)
        elif total is None:
            total, owned = (gradient, False) if weight == 1 else (gradient * weight, True)
        elif owned:
            total.add_(gradient, alpha=weight)
        else:
            total, owned = torch.add(total, gradient, alpha=weight), True
    return total


class Gate:
    """One point where K tasks share tensors: its weighting, its memory and its statistics.

    With gradient accumulation each micro-batch is arbitrated separately.

    Args:
        tasks: names, in the order in which the views are handed out.
        weighting: from the Gramian to weights; `None` for the plain sum without a gate.
        process_group: group over which the Gramian is summed; `None`: the default group, if there is one.
        groups: name -> tasks whose gradients are summed and arbitrated as one.
        gramian_source: "features", "pooled" or "layer" (`GRAMIAN_SOURCES`).
        input_hooks: on the last shared layers, for "layer".
        preference: how much a task (or group) counts; default 1.
        images: samples of the global batch that one backward stands for.
        warmup: images over which the weights move linearly from equal to the weighting's.
        average: half-life of the Gramian's moving average, in images; 0: no average.

    Attributes:
        tasks: what is arbitrated between: tasks, or groups of them.
        last: `[K,K]` Gramian and `[K]` weights of the last backward, detached; `None` before the first.
        loss_scale: factor of all gradients that is divided out of the Gramian (fp16), as the optimizer holds it.
        gradient_factor: another factor of all gradients that is divided out: the number of workers, since engines
            average gradients.
    """

    def __init__(
        self,
        tasks: list[str],
        weighting: WeightingFunction | None,
        process_group: Any = None,
        *,
        groups: Mapping[str, list[str]] | None = None,
        gramian_source: str = "features",
        input_hooks: InputHooks | None = None,
        preference: Mapping[str, float] | None = None,
        images: float = 1.0,
        warmup: float = 0.0,
        average: float = 0.0,
    ) -> None:
        group_of = {task: name for name, members in (groups or {}).items() for task in members}
        self.unit_of = {task: group_of.get(task, task) for task in tasks}
        self.tasks = list(dict.fromkeys(self.unit_of.values()))
        self.weighting = weighting
        self.process_group = process_group
        self.gramian_source = GRAMIAN_SOURCES[gramian_source]
        self.input_hooks = input_hooks
        self.images = images
        self.warmup = warmup
        self.average = average
        given = torch.tensor([(preference or {}).get(task, 1.0) for task in self.tasks], dtype=torch.float64)
        has_preference = bool((given != given[:1]).any())
        self.preference = given / given.mean() if has_preference else torch.ones_like(given)
        self.is_plain_sum = isinstance(weighting, Equal) and not has_preference
        self.loss_scale: Tensor | None = None
        self.gradient_factor = 1.0
        self.last: tuple[Tensor, Tensor] | None = None
        self.statistics = GateStatistics(self.tasks)
        self.losses: dict[str, Tensor] | None = None
        self.memory: dict[str, Tensor] = {}

    @property
    def workers(self) -> int:
        """Number of workers over which the Gramian is summed."""
        return dist.get_world_size(self.process_group) if dist.is_initialized() else 1

    def __call__(self, shared: list[Tensor], slices: Sequence[RowSlice] | None = None) -> dict[str, list[Tensor]]:
        """P shared tensors -> for each task, its own P views.

        Args:
            slices: which rows of which whole tensor each shared tensor holds; default: each is a whole tensor.
        """
        if self.weighting is None or len(self.tasks) < 2 or not any(tensor.requires_grad for tensor in shared):
            return {task: shared for task in self.unit_of}
        slices = [RowSlice(number) for number in range(len(shared))] if slices is None else slices
        views = GradientGate.apply(self, self.gramian_source(shared, slices, self.input_hooks), *shared)
        parts = len(shared)
        views_of = {unit: list(views[k * parts : (k + 1) * parts]) for k, unit in enumerate(self.tasks)}
        return {task: views_of[unit] for task, unit in self.unit_of.items()}

    def set_losses(self, losses: Mapping[str, Tensor]) -> None:
        """Set the tasks' losses of the forward whose backward comes next, for weightings that read losses."""
        if self._reads_losses:
            self.losses = {}
            for task, unit in self.unit_of.items():
                if task in losses:
                    loss = losses[task].detach().double()
                    self.losses[unit] = self.losses[unit] + loss if unit in self.losses else loss

    @property
    def _reads_losses(self) -> bool:
        return getattr(self.weighting, "reads_losses", False)

    def arbitrate(self, gramian: Tensor) -> Weights | None:
        """`[K,K]` Gramian, summed over the workers -> K weights, the same on every worker; `None`: all are 1."""
        if self.loss_scale is not None or self.gradient_factor != 1:
            gramian = gramian / (self.gradient_factor * (1.0 if self.loss_scale is None else self.loss_scale)) ** 2
        if self.is_plain_sum:
            self.last = gramian.detach(), torch.ones_like(gramian[0])
            weights = None
        else:
            where = gramian.device if self._on_device else "cpu"
            weights = self._weights(gramian.to(where, torch.float64))
            self.last = gramian.detach(), weights.to(gramian, non_blocking=True)
        self.statistics.add(*self.last)
        if weights is None:
            return None
        return weights.tolist() if weights.device.type == "cpu" else self.last[1].unbind()

    @property
    def _on_device(self) -> bool:
        return getattr(self.weighting, "on_device", False)

    def _weights(self, gramian: Tensor) -> Tensor:
        """`[K,K]` -> `[K]`, float64, both where the weighting computes: on the gradients' device, or on the CPU.

        A task without a gradient takes no part and has weight 0. In a step that is not finite all weights are 1: the
        optimizer skips that step as a whole. Nothing here depends on values, except for a weighting on the CPU.
        """
        losses = self._mean_losses(gramian.device)
        present = gramian.diagonal() != 0  # NaN counts as a gradient
        usable = torch.isfinite(gramian).all() & present.any()
        if losses is not None:
            usable = usable & torch.isfinite(losses).all()
        if not self._on_device and not usable:
            return torch.ones_like(gramian[0])
        if self.average:
            gramian = self._moving_average(gramian, usable)
        preference = constant(tuple(self.preference.tolist()), torch.float64, gramian.device)
        weights = self._call_weighting(gramian, present & usable, preference, losses)
        images = self._kept("images", usable)
        if self.warmup:
            early = preference + (weights - preference) * (images / self.warmup)
            weights = torch.where(images < self.warmup, early, weights)
        images += usable.double() * self.images
        return torch.where(usable, torch.where(present, weights, 0.0), 1.0)

    def _call_weighting(self, gramian: Tensor, present: Tensor, preference: Tensor, losses: Tensor | None) -> Tensor:
        """Return the weighting's answer, times the preference unless it uses that itself; 0 for tasks that are absent.

        A weighting on the device gets all rows, as choosing some would take the host; others get those that are there.
        """
        active = constant(tuple(range(len(present))), torch.int64, present.device)
        if self._on_device:
            gramian = torch.where(present[:, None] & present, gramian, 0.0)
        else:
            active = active[present]
            gramian, preference = gramian[active][:, active], preference[active]
            losses = None if losses is None else losses[active]
        rows = present if self._on_device else None
        context = GateContext(active, len(self.tasks), preference, self.images, losses, rows)
        weighting, relative = self.weighting, gramian / context.mean(gramian.diagonal())
        assert weighting is not None
        answer = weighting(relative, context) if isinstance(weighting, Weighting) else weighting(relative)
        weights = answer.detach().to(gramian)
        if weights.shape != active.shape:
            raise ValueError(
                f"weighting {type(weighting).__name__}: returned weights of shape {tuple(weights.shape)} for "
                f"{len(active)} tasks; return one weight per row of the Gramian"
            )
        if not getattr(weighting, "takes_preference", False):
            weights = weights * preference
        return weights.new_zeros(len(self.tasks)).index_copy(0, active, weights)

    def _kept(self, name: str, like: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        """A tensor of the memory on the device of `like`, to be changed in place; 0 at first."""
        if name not in self.memory:
            self.memory[name] = torch.zeros(shape, dtype=torch.float64, device=like.device)
        self.memory[name] = self.memory[name].to(like.device)  # a checkpoint's is on the CPU
        return self.memory[name]

    def _moving_average(self, gramian: Tensor, usable: Tensor) -> Tensor:
        """Update the Gramian's moving average, if this one is usable, and return it.

        A missing task counts as a zero gradient, so the average stays a Gramian.
        """
        decay = 0.5 ** (self.images / self.average)
        total, count = self._kept("gramian", gramian, tuple(gramian.shape)), self._kept("averaged", gramian)
        total.copy_(torch.where(usable, total * decay + gramian * (1 - decay), total))
        count.copy_(torch.where(usable, count * decay + (1 - decay), count))
        return total / count

    def _mean_losses(self, device: torch.device) -> Tensor | None:
        """`[K]` losses, means over the workers, or `None` if the weighting does not read them; collective."""
        if not self._reads_losses:
            return None
        if self.losses is None:
            raise RuntimeError(
                f"weighting {type(self.weighting).__name__} reads losses and this gate has none; "
                "call Gate.set_losses before the backward"
            )
        first = next(iter(self.losses.values()))
        zero = torch.zeros((), dtype=torch.float64, device=first.device)
        losses = torch.stack([self.losses.get(task, zero) for task in self.tasks])
        if self.workers > 1:
            dist.all_reduce(losses, group=self.process_group)
        return losses.to(device) / self.workers

    def report(self) -> dict[str, float]:
        """Return means over the backwards since the last report (`GateStatistics.report`)."""
        return self.statistics.report()

    def state(self) -> dict[str, Tensor]:
        """Return everything that is kept from step to step, the same on every worker."""
        if self.weighting is None:
            return {}
        kept = {f"weighting/{name}": tensor for name, tensor in getattr(self.weighting, "memory", {}).items()}
        return {name: tensor.to("cpu", copy=True) for name, tensor in (self.memory | kept).items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self.memory |= {name: tensor.clone() for name, tensor in state.items() if not name.startswith("weighting/")}
        if isinstance(self.weighting, Weighting):
            self.weighting.memory = {
                name.removeprefix("weighting/"): tensor.clone()
                for name, tensor in state.items()
                if name.startswith("weighting/")
            }
