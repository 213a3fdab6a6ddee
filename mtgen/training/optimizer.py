"""Adam that skips steps with a non-finite gradient and clips gradients that jump, without a host sync on a GPU."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtgen.utils.import_guards import Adam


class GuardedAdam(Adam):
    """Adam (Kingma and Ba 2015) with a guard, and a dynamic loss scale where the precision needs one.

    The guard is the squared norm of the whole gradient. The norm is logged anyway, and it is not finite exactly when
    an element is not, or when the norm overflows, which is as bad. On a GPU the fused kernel gets this as `found_inf`
    and then changes nothing. On a CPU, where reading it costs nothing, the step is skipped. The fused kernel is not
    used there: its rounding depends on a tensor's alignment, so ZeRO's flat partitions would not equal a plain loop
    bit for bit.

    A gradient whose norm is more than `clip` times the usual norm is clipped to that. When a gradient jumps, Adam
    without momentum makes a step of 1 / sqrt(1 - beta2) learning rates (10 at 0.99), and its second moment then makes
    the next hundreds of steps short; one such step has ended GAN runs. The usual norm is a moving average of the
    clipped norms, so it follows training. Sources: Wang et al. 2025 (AdaGC), Kumar et al. 2025 (ZClip).

    It works the same in DeepSpeed's ZeRO 0, 1 and 2. In 1 and 2 each worker holds a partition of the gradient, so
    squared norms are summed over the workers.

    Args:
        parameters: to train, or groups of them as torch's optimizers take them.
        lr: learning rate.
        beta2: decay of the second moment; the first moment is not used.
        partitioned: whether each worker holds its own partition of the gradient (ZeRO 1 and 2).
        scaled: keep a dynamic loss scale (fp16), halved after a skipped step and doubled after 2,000 good ones.
        clip: maximum norm of a gradient as a multiple of the usual norm; 0: no maximum.

    Attributes:
        norm: scalar, norm of the last whole gradient, unscaled, before it was clipped.
        usual: scalar, the moving average; 0 before the first step.
        cut: scalar, steps since the start whose gradient was clipped.
        skipped: scalar, steps skipped since the start.
        in_a_row: scalar, steps skipped since the last good one.
        loss_scale: scalar by which the loss has to be multiplied, or `None`.
    """

    GROWTH_INTERVAL = 2000
    MEMORY = 0.98
    """Decay of the moving average per step: it looks back about fifty steps."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        beta2: float,
        partitioned: bool,
        scaled: bool,
        clip: float = 0.0,
    ) -> None:
        given: list[Any] = list(parameters)
        first = given[0]["params"][0] if isinstance(given[0], dict) else given[0]
        device = first.device
        self.on_device = device.type == "cuda"
        super().__init__(given, lr=lr, betas=(0.0, beta2), weight_decay=0.0, fused=self.on_device, foreach=False)
        self.partitioned = partitioned
        self.clip = clip
        self.norm = torch.zeros((), device=device)
        self.usual = torch.zeros((), device=device)
        self.cut = torch.zeros((), device=device)
        self.skipped = torch.zeros((), device=device)
        self.in_a_row = torch.zeros((), device=device)
        self.loss_scale = torch.full((), 2.0**16, device=device) if scaled else None
        self.good_steps = torch.zeros((), dtype=torch.int32, device=device)

    def create_state(self) -> None:
        """Create Adam's state before its first step, so that it can be saved and loaded at any time."""
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
        """One step with the gradients of the parameters; nothing changes if one of them is not finite."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        squared = (
            torch.stack(torch._foreach_norm(gradients)).square().sum() if gradients else torch.zeros_like(self.norm)
        )
        if self.partitioned and dist.is_initialized():
            dist.all_reduce(squared)
        not_finite = (~torch.isfinite(squared)).to(torch.float32)
        self.norm = squared.sqrt() if self.loss_scale is None else squared.sqrt() / self.loss_scale
        if self.clip:
            factor = self._clip_factor()  # on every worker, also without a gradient: the usual norm is the same on all
            if gradients:
                torch._foreach_mul_(gradients, factor)
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

    def _clip_factor(self) -> Tensor:
        """Scalar by which the gradient is multiplied, 1 or less; also updates the usual norm."""
        started = self.usual > 0
        factor = torch.where(started, (self.clip * self.usual / self.norm).clamp(max=1), 1.0)
        followed = torch.where(started, self.MEMORY * self.usual + (1 - self.MEMORY) * factor * self.norm, self.norm)
        finite = torch.isfinite(self.norm)
        self.usual = torch.where(finite, followed, self.usual)
        self.cut += finite & (factor < 1)
        return torch.where(finite, factor, 1.0)

    def counters(self) -> dict[str, float]:
        """What a checkpoint stores besides the parameters and their moments."""
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
        """Restore what `counters` returned; a run that changes its precision starts with a fresh loss scale."""
        self.skipped.fill_(counters["skipped"])
        self.usual = torch.full_like(self.usual, counters.get("usual", 0.0))
        self.cut = torch.full_like(self.cut, counters.get("cut", 0.0))
        self.in_a_row = torch.full_like(self.in_a_row, counters["in_a_row"])
        if self.loss_scale is not None and "loss_scale" in counters:
            self.loss_scale.fill_(counters["loss_scale"])
            self.good_steps.fill_(int(counters["good_steps"]))
