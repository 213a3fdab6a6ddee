"""Tagging: predict all classes in an image (multi-label classification)."""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mtgen.config import TASKS, TaskSettings
from mtgen.networks.discriminator import Discriminator
from mtgen.schema import Prediction
from mtgen.tasks.base import DiscriminatorContext, GeneratorContext, LossDict, StepContext, Task, TaskFeatures


@TASKS.register("tagging")
class Tagging(Task):
    """Binary cross-entropy per class, averaged over the classes; with weight `agreement` on generated images too."""

    class Settings(TaskSettings):
        weight: float = Field(0.3, ge=0, description="factor of the task's losses; 0 switches it off")
        agreement: float = Field(
            0.1, ge=0, description="weight of the generated image's predicted labels being the sample's"
        )

        @property
        def needs(self) -> str:
            return "tags"

        @property
        def metric(self) -> str:
            return "test/tagging_map"

    def head(self) -> nn.Module:
        return nn.Linear(self.sizes.summary, self.sizes.classes)

    def logits(self, discriminator: Discriminator, levels: list[Tensor]) -> Tensor:
        """Trunk features -> `[B,K]` float32."""
        return discriminator.heads[self.name](discriminator.summary(levels)).float()

    def class_prediction(self, discriminator: Discriminator, levels: list[Tensor]) -> Tensor:
        return F.logsigmoid(self.logits(discriminator, levels))

    def _losses(self, context: StepContext, features: TaskFeatures) -> Tensor:
        """`[R]` losses of the image-only rows, 0 where the labels are unknown."""
        assert context.batch.labels is not None  # the loader provides tags
        logits = self.logits(context.discriminator, features.image_only)
        target = context.batch.labels[context.image_only].to(logits.dtype)
        losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
        return losses * context.batch.present["tags"][context.image_only]

    def discriminator_losses(self, context: DiscriminatorContext, features: TaskFeatures) -> LossDict:
        return {"cross_entropy": context.mean(self._losses(context, features), "tags")}

    def generator_losses(self, context: GeneratorContext, features: TaskFeatures) -> LossDict:
        if not self.settings.agreement:
            return {}
        losses = self._losses(context, features) * context.is_conditioned[context.image_only]
        return {"agreement": self.settings.agreement * context.mean(losses, "tags")}

    def predict(self, discriminator: Discriminator, levels: list[Tensor], prediction: Prediction) -> None:
        prediction.label_logits = self.logits(discriminator, levels)
