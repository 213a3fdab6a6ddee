"""Segmentation: read the mask of an image; the mask that the generator draws should be the one that is read in its image."""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mtgen.config import TASKS, TaskSettings
from mtgen.networks.blocks import Conv2d
from mtgen.networks.discriminator import Discriminator
from mtgen.schema import IGNORE_INDEX, Prediction
from mtgen.tasks.base import LossDict, StepContext, Task, TaskFeatures


@TASKS.register("segmentation")
class Segmentation(Task):
    """Cross-entropy a pixel, averaged over the known pixels of a sample, then over samples with a mask."""

    class Settings(TaskSettings):
        weight: float = Field(0.3, ge=0, description="factor of the task's losses; 0 switches it off")
        agreement: float = Field(
            0.1, ge=0, description="weight of the agreement between drawn mask and the mask read in the drawn image"
        )
        distillation: float = Field(
            0.2,
            ge=0,
            description="weight with which the drawn mask is taught the one read; the image learns nothing by it",
        )

        @property
        def needs(self) -> str:
            return "mask"

        @property
        def metric(self) -> str:
            return "test/mask_miou"

    dense = True

    def head(self) -> nn.Module:
        return Conv2d(self.sizes.decoder, self.sizes.mask_classes, 1, gain=0.1)

    def logits(self, discriminator: Discriminator, features: list[Tensor]) -> Tensor:
        """Trunk features -> `[B,M,H,W]` float32."""
        return discriminator.heads[self.name](discriminator.dense(features)).float()

    def discriminator_losses(self, scene: StepContext, views: TaskFeatures) -> LossDict:
        mask = scene.batch.mask[: scene.reading]
        known = (mask != IGNORE_INDEX).sum(dim=(1, 2))
        losses = F.cross_entropy(
            self.logits(scene.discriminator, views.reading), mask, reduction="none", ignore_index=IGNORE_INDEX
        )
        return {"cross_entropy": scene.mean(losses.sum(dim=(1, 2)) / known.clamp_min(1), "mask")}

    def generator_losses(self, scene: StepContext, views: TaskFeatures) -> LossDict:
        """Drawn and read masks should agree; where a layout was asked for, both should be it."""
        if scene.fake.mask is None or not (self.settings.agreement or self.settings.distillation):
            return {}
        reading = slice(scene.reading)
        drawn = scene.fake.mask[reading]
        read = self.logits(scene.discriminator, views.reading).log_softmax(dim=1)
        losses = {}
        if self.settings.agreement:
            losses["agreement"] = self.settings.agreement * scene.mean(_cross_entropy(drawn, read), "reading")
        if self.settings.distillation:
            taught = _cross_entropy(read.detach().exp(), drawn.clamp_min(1e-4).log())
            losses["distillation"] = self.settings.distillation * scene.mean(taught, "reading")
        if self.settings.agreement and "layout" in scene.prompt.given:
            asked, given = (
                scene.prompt.values["layout"][reading],
                (scene.prompt.given["layout"] & scene.unaugmented)[reading],
            )
            away = _cross_entropy(asked, read) + _cross_entropy(asked, drawn.clamp_min(1e-4).log())
            losses["layout"] = self.settings.agreement * scene.mean(away * given, "mask")
        return losses

    def predict(self, discriminator: Discriminator, features: list[Tensor], prediction: Prediction) -> None:
        prediction.mask_logits = self.logits(discriminator, features)


def _cross_entropy(wanted: Tensor, log_probability: Tensor) -> Tensor:
    """`[B,M,H,W]` each -> `[B]`, the mean over all pixels."""
    return -(wanted * log_probability).sum(dim=1).mean(dim=(1, 2))
