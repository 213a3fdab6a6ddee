"""Tagging: read every class that is in an image (classification with several labels)."""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mtgen.config import TASKS, TaskSettings
from mtgen.networks.discriminator import Discriminator
from mtgen.schema import Prediction
from mtgen.tasks.base import LossDict, StepContext, Task, TaskFeatures


@TASKS.register("tagging")
class Tagging(Task):
    """Binary cross-entropy of each class, averaged over the classes; for the generator, on images that were asked for by their labels."""

    class Settings(TaskSettings):
        weight: float = Field(0.3, ge=0, description="factor of the task's losses; 0 switches it off")
        agreement: float = Field(
            0.1, ge=0, description="weight of the generator's agreement with the labels that were asked for"
        )

        @property
        def needs(self) -> str:
            return "boxes"  # a sample's labels stand beside its boxes

        @property
        def metric(self) -> str:
            return "test/tagging_map"

    def head(self) -> nn.Module:
        return nn.Linear(self.sizes.summary, self.sizes.classes)

    def _loss(self, scene: StepContext, views: TaskFeatures) -> Tensor:
        assert scene.batch.labels is not None  # the loader was asked for boxes
        logits = self.logits(scene.discriminator, views.reading)
        target = scene.batch.labels[: scene.reading].to(logits.dtype)
        losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
        return losses * scene.batch.present["boxes"][: scene.reading]

    def logits(self, discriminator: Discriminator, features: list[Tensor]) -> Tensor:
        """Trunk features -> `[B,K]` float32."""
        return discriminator.heads[self.name](discriminator.summary(features)).float()

    def discriminator_losses(self, scene: StepContext, views: TaskFeatures) -> LossDict:
        return {"cross_entropy": scene.mean(self._loss(scene, views), "boxes")}

    def generator_losses(self, scene: StepContext, views: TaskFeatures) -> LossDict:
        if not self.settings.agreement:
            return {}
        return {
            "agreement": self.settings.agreement
            * scene.mean(self._loss(scene, views) * scene.is_conditioned[: scene.reading], "boxes")
        }

    def predict(self, discriminator: Discriminator, features: list[Tensor], prediction: Prediction) -> None:
        prediction.label_logits = self.logits(discriminator, features)
