"""Classification: read the class of an image; generated images should be read as what was asked for."""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mtgen.config import TASKS, TaskSettings
from mtgen.networks.discriminator import Discriminator
from mtgen.schema import Prediction
from mtgen.tasks.base import LossDict, StepContext, Task, TaskFeatures


@TASKS.register("classification")
class Classification(Task):
    """Cross-entropy on real labeled images; with weight `agreement`, on generated ones for the generator (Odena et al. 2017)."""

    class Settings(TaskSettings):
        weight: float = Field(0.3, ge=0, description="factor of the task's losses; 0 switches it off")
        agreement: float = Field(
            0.1, ge=0, description="weight of the generator's agreement with the class that was asked for"
        )
        smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing")

        @property
        def needs(self) -> str:
            return "class"

        @property
        def metric(self) -> str:
            return "test/class_accuracy"

    def head(self) -> nn.Module:
        return nn.Linear(self.sizes.summary, self.sizes.classes)

    def _losses(self, scene: StepContext, features: list[Tensor]) -> Tensor:
        """`[R]` cross-entropies of the reading rows, 0 where the class is not known."""
        logits = self.logits(scene.discriminator, features)
        rows = slice(scene.reading)
        losses = F.cross_entropy(
            logits, scene.batch.label[rows], reduction="none", label_smoothing=self.settings.smoothing
        )
        return losses * scene.batch.present["class"][rows]

    def logits(self, discriminator: Discriminator, features: list[Tensor]) -> Tensor:
        """Trunk features -> `[B,K]` float32."""
        return discriminator.heads[self.name](discriminator.summary(features)).float()

    def discriminator_losses(self, scene: StepContext, views: TaskFeatures) -> LossDict:
        return {"cross_entropy": scene.mean(self._losses(scene, views.reading), "class")}

    def generator_losses(self, scene: StepContext, views: TaskFeatures) -> LossDict:
        """Only where something was asked for: of an image asked for by nothing, nobody knows the class."""
        if not self.settings.agreement:
            return {}
        losses = self._losses(scene, views.reading) * scene.is_conditioned[: scene.reading]
        return {"agreement": self.settings.agreement * scene.mean(losses, "class")}

    def predict(self, discriminator: Discriminator, features: list[Tensor], prediction: Prediction) -> None:
        prediction.class_logits = self.logits(discriminator, features)
