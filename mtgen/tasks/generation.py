"""Generation: the relativistic game between generator and discriminator, on images and on images with their labels."""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mtgen.config import TASKS, Schedule, TaskSettings, within
from mtgen.schema import Canvas, Condition
from mtgen.tasks.base import DiscriminatorContext, GeneratorContext, LossDict, StepContext, Task, TaskFeatures
from mtgen.utils.autocast import autocast


class ProjectionHead(nn.Module):
    """Logit with projection on the condition: `<e(x), v + c> / sqrt(d)`. Source: Miyato and Koyama 2018.

    There is no bias: losses and penalties use differences of logits for equal conditions, so its gradient would be
    rounding noise.
    """

    def __init__(self, summary: int, embedding: int) -> None:
        super().__init__()
        self.embed = nn.Linear(summary, embedding, bias=False)
        self.direction = nn.Parameter(torch.randn(embedding))

    def forward(self, summary: Tensor, condition: Condition) -> Tensor:
        """`[B,S]`, condition of `[B,d]` -> `[B]`, in fp32: the penalty is a difference of nearly equal logits."""
        with autocast(summary.device, enabled=False):
            embedded = self.embed(summary.float())
            return (embedded * (self.direction + condition.pooled.float())).sum(dim=1) / math.sqrt(embedded.shape[1])


@TASKS.register("generation")
class Generation(Task):
    """Relativistic pairing loss with zero-centered gradient penalties on real and generated samples.

    Real and generated samples are paired row by row, with the same condition. Sources: Jolicoeur-Martineau 2018
    (relativistic); Mescheder et al. 2018 (R1, R2); Huang et al. 2024 (their sum makes the relativistic game converge).
    """

    class Settings(TaskSettings):
        gamma: Annotated[float | Schedule, within(ge=0)] = Field(
            10.0, description="weight of the gradient penalties, or its schedule: gamma/2 (R1 + R2)"
        )
        penalty: Literal["finite", "exact"] = Field(
            "finite",
            description="finite: from one random difference, in the step's one forward; exact: by double backward, "
            "at a higher cost",
        )
        penalty_sigma: float | None = Field(
            None,
            gt=0,
            description="standard deviation of the finite-difference noise; default: the smallest the precision allows",
        )
        penalty_every: int = Field(4, ge=1, description="one sample in N is penalized")
        joint_every: int = Field(
            2,
            ge=2,
            description="one sample in N is judged together with its mask and boxes, the others as images alone",
        )
        hard_labels: bool = Field(
            True,
            description="judge generated masks and boxes as the hard labels that real ones are; they get the soft "
            "ones' gradient",
        )
        mismatched: float = Field(
            0.0,
            ge=0,
            description="weight of real images with the labels of another sample, as negatives of the joint judgment",
        )
        joint_gradient: bool = Field(
            False, description="let the joint judgment of image and labels train the image too, not the labels alone"
        )

    def head(self) -> nn.Module:
        return ProjectionHead(self.sizes.summary, self.sizes.embedding)

    def _logits(self, context: StepContext, lowest: Tensor, condition: Condition) -> Tensor:
        return context.discriminator.heads[self.name](context.discriminator.summary([lowest]), condition)

    def discriminator_canvases(self, context: DiscriminatorContext) -> Canvas | None:
        """The real images of the joint rows with the mask and the boxes of their partners."""
        if not self.settings.mismatched:
            return None
        rows = torch.arange(context.num_image_only, len(context.batch), device=context.partner.device)
        partner, real = context.partner[rows], context.real
        others = real.map(lambda x: x[partner])
        shown = None if others.shown is None or real.shown is None else others.shown & real.shown[rows]
        boxed = None if others.boxed is None or real.boxed is None else others.boxed & real.boxed[rows]
        return Canvas(real.image[rows], others.mask, shown, others.boxes, boxed)

    def _mismatched(self, context: DiscriminatorContext, features: TaskFeatures, real: Tensor) -> Tensor:
        """Relativistic: a real image should score higher with its own labels than with those of its partner."""
        rows = slice(context.num_image_only, len(context.batch))
        condition = Condition(context.condition.pooled[rows])
        wrong = self._logits(context, features.submitted[0], condition)
        differs = context.partner[rows] >= context.num_image_only
        differs = differs & (context.partner[rows] != torch.arange(len(context.batch), device=wrong.device)[rows])
        return self.settings.mismatched * context.mean(F.softplus(wrong - real[rows]) * differs, "joint")

    def discriminator_losses(self, context: DiscriminatorContext, features: TaskFeatures) -> LossDict:
        """The pairing loss, and gamma/2 (R1 + R2)."""
        rows, pooled = len(context.batch), context.condition.pooled
        finite = self.settings.penalty == "finite"
        noisy_pooled = [pooled[context.penalized]] * 2 if finite else []
        logits = self._logits(context, features.judged, Condition(torch.cat([pooled, pooled, *noisy_pooled])))
        real, fake, noisy = logits.split([rows, rows, len(logits) - 2 * rows])
        context.observe_logit_gap((real - fake).detach())
        if finite:
            clean = torch.cat([real[context.penalized], fake[context.penalized]])
            squared = ((noisy - clean) / context.penalty_sigma).square()
        else:
            squared = self._squared_gradients(context)
        losses = {
            "adversarial": context.mean(F.softplus(fake - real), "all"),
            "penalty": context.scheduled(self.settings.gamma) / 2 * context.mean(squared, "penalized"),
        }
        if self.settings.mismatched:
            losses["mismatched"] = self._mismatched(context, features, real)
        return losses

    def _squared_gradients(self, context: DiscriminatorContext) -> Tensor:
        """`[2Q]` squared norms of the logit's gradient at everything visible of the penalized rows, real and generated.

        They need a separate forward that bypasses the gate: their gradient for the trunk is a second derivative, which
        does not pass through the features alone.
        """
        assert context.fake is not None
        if not len(context.penalized):
            return context.condition.pooled.new_zeros(0)
        pooled = context.condition.pooled[context.penalized]
        rows = [canvas.map(lambda x: x[context.penalized]) for canvas in (context.real, context.fake)]
        canvas = Canvas.cat(rows).map_generated(lambda x, name: x.detach().requires_grad_())
        pretrained = None
        if context.discriminator.judge.see_pretrained is not None:
            found = context.discriminator.pretrained(canvas.image.detach()) or []
            pretrained = [features.detach().requires_grad_() for features in found]
        lowest = context.discriminator.judged(canvas, pretrained)
        logits = self._logits(context, lowest, Condition(torch.cat([pooled, pooled])))
        visible = [x for x in (canvas.image, canvas.mask, canvas.boxes) if x is not None]
        gradients = list(torch.autograd.grad(logits.sum(), [*visible, *(pretrained or [])], create_graph=True))
        for number in range(len(visible), len(gradients)):
            gradients[number] = context.feature_noise * gradients[number]
        return torch.stack([gradient.float().flatten(1).square().sum(dim=1) for gradient in gradients]).sum(dim=0)

    def generator_losses(self, context: GeneratorContext, features: TaskFeatures) -> LossDict:
        fake = self._logits(context, features.judged, context.condition)
        with torch.no_grad():
            real = self._logits(context, context.real_judged, context.condition)
        return {"adversarial": context.mean(F.softplus(real - fake), "all")}
