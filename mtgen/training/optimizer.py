"""Adam that leaves out a step whose gradient is not finite, and shortens one that jumps; on a GPU without a host sync."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtgen.utils.import_guards import Adam


class GuardedAdam(Adam):
    """Adam (Kingma and Ba 2015) with a guard, and a dynamic loss scale where the precision needs one.

    The guard is the squared norm of the whole gradient: it is what is logged, and it is not finite exactly when a gradient is not
    (or when their norm overflows, which is no better). On a GPU the fused kernel reads `found_inf` there and then changes nothing;
    on a CPU, where looking costs nothing, the step is not taken (the fused kernel there rounds by a tensor's alignment, so that
    ZeRO's flat partitions would not equal a plain loop bit for bit).

    A gradient longer than `clip` times what is usual is cut to that length. A step of Adam without momentum is ten rates long where a
    gradient jumps (1 / sqrt(1 - beta2)), and its memory of the jump then makes all others short for hundreds of steps; in a game of two
    networks one such step has ended runs. What is usual is a moving average of the cut norms, so that it follows where training goes.
    Sources: Wang et al. 2025 (AdaGC), Kumar et al. 2025 (ZClip).

    It works the same under DeepSpeed's ZeRO 0, 1 and 2: in 1 and 2 a worker holds a part of the gradient, so the norms are summed.

    Args:
        partitioned: whether each worker holds its own part of the gradient (ZeRO 1 and 2).
        scaled: keep a dynamic loss scale (fp16): halved after a step that was left out, doubled after 2,000 good ones.
        clip: how many times the usual norm a gradient may have; 0: any.

    Attributes:
        norm: scalar, norm of the last gradient (of the whole, unscaled), before it was cut.
        usual: scalar, the moving average; 0 before the first step.
        cut: scalar, steps since the start whose gradient was cut.
        skipped: scalar, steps left out since the start.
        in_a_row: scalar, steps left out since the last good one.
        loss_scale: scalar that the loss has to be multiplied by, or `None`.
    """

    GROWTH_INTERVAL = 2000
    MEMORY = 0.98
    """What the moving average keeps in a step: it looks back some fifty steps."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        beta2: float,
        partitioned: bool,
        scaled: bool,
        clip: float = 0.0,
    ) -> None:
        parameters = list(parameters)
        device = parameters[0].device
        self.on_device = device.type == "cuda"
        super().__init__(parameters, lr=lr, betas=(0.0, beta2), weight_decay=0.0, fused=self.on_device, foreach=False)
        self.partitioned = partitioned
        self.clip = clip
        self.norm, self.usual, self.cut, self.skipped, self.in_a_row = (
            torch.zeros((), device=device) for _ in range(5)
        )
        self.loss_scale = torch.full((), 2.0**16, device=device) if scaled else None
        self.good_steps = torch.zeros((), dtype=torch.int32, device=device)

    def create_state(self) -> None:
        """Adam's state before its first step, so that it can be saved and loaded at any time."""
        for group in self.param_groups:
            for parameter in group["params"]:
                step = torch.zeros((), device=parameter.device if group["fused"] else None)
                self.state[parameter] = {
                    "step": step,
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step for the gradients that the parameters hold; nothing changes where one of them is not finite."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        squared = (
            torch.stack(torch._foreach_norm(gradients)).square().sum() if gradients else torch.zeros_like(self.norm)
        )
        if self.partitioned and dist.is_initialized():
            dist.all_reduce(squared)
        not_finite = (~torch.isfinite(squared)).to(torch.float32)
        self.norm = squared.sqrt() if self.loss_scale is None else squared.sqrt() / self.loss_scale
        if self.clip:
            share = (
                self._share()
            )  # also where this worker holds no part of the gradient: what is usual is the same on all
            if gradients:
                torch._foreach_mul_(gradients, share)
        if self.on_device:
            self.found_inf, self.grad_scale = not_finite, self.loss_scale
            super().step(closure)
        elif not not_finite:
            if self.loss_scale is not None:
                torch._foreach_div_(gradients, self.loss_scale.item())
            super().step(closure)
        self.skipped += not_finite
        self.in_a_row = (self.in_a_row + 1) * not_finite
        if self.loss_scale is not None:
            torch._amp_update_scale_(self.loss_scale, self.good_steps, not_finite, 2.0, 0.5, self.GROWTH_INTERVAL)

    def _share(self) -> Tensor:
        """Scalar, the share of the gradient that is kept: 1, or less where it is far longer than usual, which is brought up to date."""
        started = self.usual > 0
        share = torch.where(started, (self.clip * self.usual / self.norm).clamp(max=1), 1.0)
        followed = torch.where(started, self.MEMORY * self.usual + (1 - self.MEMORY) * share * self.norm, self.norm)
        finite = torch.isfinite(self.norm)
        self.usual = torch.where(finite, followed, self.usual)
        self.cut += finite & (share < 1)
        return torch.where(finite, share, 1.0)

    def counters(self) -> dict[str, float]:
        """What a checkpoint keeps besides the parameters' state."""
        scale = (
            {}
            if self.loss_scale is None
            else {"loss_scale": self.loss_scale.item(), "good_steps": self.good_steps.item()}
        )
        return {
            "skipped": self.skipped.item(),
            "in_a_row": self.in_a_row.item(),
            "usual": self.usual.item(),
            "cut": self.cut.item(),
            **scale,
        }

    def load_counters(self, counters: dict[str, float]) -> None:
        """Take back what `counters` gave; a run that changes its precision starts with a fresh loss scale."""
        self.skipped.fill_(counters["skipped"])
        self.usual = torch.full_like(self.usual, counters.get("usual", 0.0))
        self.cut = torch.full_like(self.cut, counters.get("cut", 0.0))
        self.in_a_row = torch.full_like(self.in_a_row, counters["in_a_row"])
        if self.loss_scale is not None and "loss_scale" in counters:
            self.loss_scale.fill_(counters["loss_scale"])
            self.good_steps.fill_(int(counters["good_steps"]))
