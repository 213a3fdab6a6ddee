"""Generation: the relativistic game between generator and discriminator, on images and on images with their masks."""

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mtgen.config import TASKS, TaskSettings
from mtgen.schema import Condition
from mtgen.tasks.base import Losses, Scene, Task, Views


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
        with torch.autocast(summary.device.type, enabled=False):
            embedded = self.embed(summary.float())
            return (embedded * (self.direction + condition.pooled.float())).sum(dim=1) / math.sqrt(embedded.shape[1])


@TASKS.register("generation")
class Generation(Task):
    """Relativistic pairing loss with zero-centred penalties on real and generated samples, by finite differences.

    Real and generated samples are paired row by row, with the same condition. Sources: Jolicoeur-Martineau 2018 (relativistic);
    Mescheder et al. 2018 (R1, R2); Huang et al. 2024 (their sum makes the relativistic game converge).
    """

    class Settings(TaskSettings):
        gamma: float = Field(10.0, ge=0, description="weight of the gradient penalties: gamma/2 (R1 + R2)")
        sigma: float | None = Field(None, gt=0, description="size of the finite-difference noise; default: what the precision allows")
        penalty_every: int = Field(4, ge=1, description="one sample in so many is penalised")
        mask_every: int = Field(
            2, ge=1, description="one sample in so many is judged together with its mask and boxes, the others as images alone"
        )
        joint_gradient: bool = Field(False, description="let the joint judgement of image and mask train the image too, not the mask alone")

    def head(self) -> nn.Module:
        return ProjectionHead(self.sizes.summary, self.sizes.embedding)

    def _logits(self, scene: Scene, lowest: Tensor, condition: Condition) -> Tensor:
        return scene.discriminator.heads[self.name](scene.discriminator.summary([lowest]), condition)

    def discriminator_losses(self, scene: Scene, views: Views) -> Losses:
        """The pairing loss, and gamma/2 (R1 + R2) from the logits of the noised copies with which the step's forward ends."""
        rows, noised = len(scene.batch), len(scene.penalised)
        pooled = scene.condition.pooled
        condition = Condition(torch.cat([pooled, pooled, pooled[scene.penalised], pooled[scene.penalised]]))
        logits = self._logits(scene, views.lowest, condition)
        real, fake, real_near, fake_near = logits.split([rows, rows, noised, noised])
        scene.ahead = (real - fake).detach()
        slope = (torch.cat([real_near, fake_near]) - torch.cat([real[scene.penalised], fake[scene.penalised]])) / scene.sigma
        return {
            "adversarial": scene.mean(F.softplus(fake - real), "all"),
            "penalty": self.settings.gamma / 2 * scene.mean(slope.square(), "penalised"),
        }

    def generator_losses(self, scene: Scene, views: Views) -> Losses:
        assert scene.real_features is not None
        fake = self._logits(scene, views.lowest, scene.condition)
        with torch.no_grad():
            real = self._logits(scene, scene.real_features[0], scene.condition)
        return {"adversarial": scene.mean(F.softplus(real - fake), "all")}
