"""Generation: the relativistic game between generator and discriminator, on images and on images with their masks."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mtgen.config import TASKS, TaskSettings
from mtgen.schema import Canvas, Condition
from mtgen.tasks.base import LossDict, StepContext, Task, TaskFeatures
from mtgen.utils.autocast import autocast


class ProjectionHead(nn.Module):
    """Logit with projection on the condition: `<e(x), v + c> / sqrt(d)`. Source: Miyato and Koyama 2018.

    Losses and penalties use differences of logits for equal conditions only, so there is no bias: its gradient would be rounding noise.
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

    Real and generated samples are paired row by row, with the same condition. Sources: Jolicoeur-Martineau 2018 (relativistic);
    Mescheder et al. 2018 (R1, R2); Huang et al. 2024 (their sum makes the relativistic game converge).
    """

    class Settings(TaskSettings):
        gamma: float = Field(10.0, ge=0, description="weight of the gradient penalties: gamma/2 (R1 + R2)")
        penalty: Literal["finite", "exact"] = Field(
            "finite",
            description="finite: from one random difference, in the step's one forward; exact: by double backward, which costs more",
        )
        penalty_sigma: float | None = Field(
            None,
            gt=0,
            description="standard deviation of the finite-difference noise; default: the smallest that the precision allows",
        )
        penalty_every: int = Field(4, ge=1, description="one sample in N is penalized")
        joint_every: int = Field(
            2,
            ge=2,
            description="one sample in N is judged together with its mask and boxes, the others as images alone",
        )
        joint_gradient: bool = Field(
            False, description="let the joint judgment of image and mask train the image too, not the mask alone"
        )

    def head(self) -> nn.Module:
        return ProjectionHead(self.sizes.summary, self.sizes.embedding)

    def _logits(self, scene: StepContext, lowest: Tensor, condition: Condition) -> Tensor:
        return scene.discriminator.heads[self.name](scene.discriminator.summary([lowest]), condition)

    def discriminator_losses(self, scene: StepContext, views: TaskFeatures) -> LossDict:
        """The pairing loss, and gamma/2 (R1 + R2); for finite differences the step's forward ends with noised copies."""
        rows, pooled = len(scene.batch), scene.condition.pooled
        near = [] if self.settings.penalty == "exact" else [pooled[scene.penalized]] * 2
        logits = self._logits(scene, views.lowest, Condition(torch.cat([pooled, pooled, *near])))
        real, fake, noised = logits.split([rows, rows, len(logits) - 2 * rows])
        scene.logit_gap = (real - fake).detach()
        if near:
            squared = ((noised - torch.cat([real[scene.penalized], fake[scene.penalized]])) / scene.sigma).square()
        else:
            squared = self._squared_slopes(scene)
        return {
            "adversarial": scene.mean(F.softplus(fake - real), "all"),
            "penalty": self.settings.gamma / 2 * scene.mean(squared, "penalized"),
        }

    def _squared_slopes(self, scene: StepContext) -> Tensor:
        """`[2Q]` squared norms of the logit's gradient at all that is seen of the penalized rows, real and generated.

        They come from a forward of their own, past the gate: what trains the trunk through them is a second derivative, which does
        not pass through the features alone.
        """
        if not len(scene.penalized):
            return scene.condition.pooled.new_zeros(0)
        pooled = scene.condition.pooled[scene.penalized]
        rows = [canvas.map(lambda x: x[scene.penalized]) for canvas in (scene.real, scene.fake)]
        canvas = Canvas.cat(rows).map_generated(lambda x, name: x.detach().requires_grad_())
        logits = self._logits(scene, scene.discriminator.trunk(canvas)[0], Condition(torch.cat([pooled, pooled])))
        seen = [x for x in (canvas.image, canvas.mask, canvas.boxes) if x is not None]
        slopes = torch.autograd.grad(logits.sum(), seen, create_graph=True)
        return torch.stack([slope.float().flatten(1).square().sum(dim=1) for slope in slopes]).sum(dim=0)

    def generator_losses(self, scene: StepContext, views: TaskFeatures) -> LossDict:
        assert scene.real_features is not None
        fake = self._logits(scene, views.lowest, scene.condition)
        with torch.no_grad():
            real = self._logits(scene, scene.real_features[0], scene.condition)
        return {"adversarial": scene.mean(F.softplus(real - fake), "all")}
