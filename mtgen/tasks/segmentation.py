"""Segmentation: predict the mask of an image; a generated mask should be the one predicted from its image."""

from collections.abc import Mapping

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mtgen.conditions.layout import boxes_layout
from mtgen.config import TASKS
from mtgen.networks.blocks import Conv2d
from mtgen.networks.discriminator import Discriminator
from mtgen.networks.prediction_reader import PredictionReader
from mtgen.schema import IGNORE_INDEX, Prediction
from mtgen.tasks.base import DiscriminatorContext, GeneratorContext, LossDict, ReaderSettings, Task, TaskFeatures
from mtgen.tasks.weak_labels import box_tightness, mask_classes_of, name_pairs, outside_boxes

SURE_PIXEL = 0.9
"""Probability from which a pixel of a predicted mask is a label for self-training."""


class MaskHead(Conv2d):
    """The decoder's features, and what other tasks predict, -> mask logits."""

    def __init__(self, decoder: int, mask_classes: int, reader: PredictionReader) -> None:
        super().__init__(decoder, mask_classes, 1, gain=0.1)
        self.reader = reader

    def forward(self, dense: Tensor, predicted: Mapping[str, Tensor]) -> Tensor:  # type: ignore[override]
        """`[B,D,H,W]`, and `[B,K]` for each source -> `[B,M,H,W]` float32."""
        return self.reader(super().forward(dense).float(), predicted)


@TASKS.register("segmentation")
class Segmentation(Task):
    """Pixelwise cross-entropy, averaged over the known pixels of a sample, then over samples with a mask."""

    class Settings(ReaderSettings):
        weight: float = Field(0.3, ge=0, description="factor of the task's losses; 0 switches it off")
        agreement: float = Field(
            0.1, ge=0, description="weight of the agreement of the generated mask and the mask predicted from the image"
        )
        layout: float = Field(
            0.02, ge=0, description="weight of generated and predicted masks being the given ones, where some are given"
        )
        distillation: float = Field(
            0.2,
            ge=0,
            description="weight of the predicted mask as the generated mask's target; without a gradient to the image",
        )
        weak: float = Field(
            0.0, ge=0, description="weight of what boxes and classes tell of masks, for images without a mask"
        )

        @property
        def needs(self) -> str:
            return "mask"

        @property
        def metric(self) -> str:
            return "test/mask_miou"

    dense = True
    reads = ("classification", "tagging")

    def head(self) -> nn.Module:
        names = self.sizes.mask_class_names
        return MaskHead(self.sizes.decoder, len(names), self.prediction_reader(names))

    def logits(self, discriminator: Discriminator, levels: list[Tensor]) -> Tensor:
        """Trunk features -> `[B,M,H,W]` float32."""
        predicted = self.source_predictions(discriminator, levels)
        return discriminator.heads[self.name](discriminator.dense(levels), predicted)

    def discriminator_losses(self, context: DiscriminatorContext, features: TaskFeatures) -> LossDict:
        mask = context.batch.mask[context.image_only]
        known = (mask != IGNORE_INDEX).sum(dim=(1, 2))
        logits = self.logits(context.discriminator, features.image_only)
        losses = F.cross_entropy(logits, mask, reduction="none", ignore_index=IGNORE_INDEX)
        found = {"cross_entropy": context.mean(losses.sum(dim=(1, 2)) / known.clamp_min(1), "mask")}
        if self.settings.self_training:
            found["self_training"] = self.settings.self_training * self._self_training(context, logits)
        return found | (self._weak(context, logits.log_softmax(1)) if self.settings.weak else {})

    def _self_training(self, context: DiscriminatorContext, logits: Tensor) -> Tensor:
        if context.pseudo is None or context.pseudo.masks is None:
            return logits.new_zeros(())
        probability, mask = context.pseudo.masks[context.image_only].max(1)
        use = (probability > SURE_PIXEL) & ~context.batch.present["mask"][context.image_only][:, None, None]
        distance = F.cross_entropy(logits, mask, reduction="none") * use
        return context.mean(distance.mean((1, 2)), "image_only")

    def _weak(self, context: DiscriminatorContext, log_probability: Tensor) -> LossDict:
        """What boxes and classes tell of unknown masks, weighted; see `mtgen.tasks.weak_labels`.

        A class tells that some pixel is of it; boxes tell where no pixel of a class is, and that each of their rows and
        columns has one. Boxes count in images that the augmentation left unchanged: a rotated box is none.
        """
        pairs = name_pairs(self.sizes.class_names, self.sizes.mask_class_names)
        batch, losses = context.batch, {}
        unknown = ~batch.present["mask"][context.image_only]
        if "class" in batch.present and pairs:
            wanted = mask_classes_of(batch.label[context.image_only], pairs)
            index = wanted.clamp_min(0)[:, None, None, None].expand(-1, 1, *log_probability.shape[2:])
            missing = -log_probability.gather(1, index).amax((1, 2, 3))
            use = unknown & batch.present["class"][context.image_only] & (wanted >= 0)
            losses["weak_class"] = self.settings.weak * context.mean(missing * use, "class")
        if "boxes" in batch.present and pairs and context.original.boxes is not None:
            rows, boxes = context.plain, context.original.boxes[context.plain]
            mine = log_probability[rows]
            inside = boxes_layout(boxes, self.sizes.classes, *mine.shape[2:])
            distance = outside_boxes(mine, inside, pairs) + box_tightness(mine.exp(), boxes, pairs)
            use = unknown[rows] & batch.present["boxes"][rows]
            losses["weak_boxes"] = self.settings.weak * context.mean(distance * use, "plain boxes")
        return losses

    def generator_losses(self, context: GeneratorContext, features: TaskFeatures) -> LossDict:
        """Agreement of generated and predicted masks, and of both with a given layout.

        Most of the agreement is distillation, whose gradient reaches the generated mask alone (see
        `Detection.generator_losses`).
        """
        settings, fake = self.settings, context.fake
        if fake.mask is None or fake.mask_logits is None:
            return {}
        generated = fake.mask[context.image_only]
        generated_log = fake.mask_logits[context.image_only].log_softmax(dim=1)
        predicted = self.logits(context.discriminator, features.image_only).log_softmax(dim=1)
        losses = {}
        if settings.agreement:
            losses["agreement"] = settings.agreement * context.mean(_cross_entropy(generated, predicted), "image_only")
        if settings.distillation:
            distance = _cross_entropy(predicted.detach().exp(), generated_log)
            losses["distillation"] = settings.distillation * context.mean(distance, "image_only")
        if settings.layout and "layout" in context.prompt.given:
            layout = context.prompt.values["layout"][context.image_only]
            given = (context.prompt.given["layout"] & context.fake_unaugmented)[context.image_only]
            distance = _cross_entropy(layout, predicted) + _cross_entropy(layout, generated_log)
            losses["layout"] = settings.layout * context.mean(distance * given, "given layout")
        return losses

    def predict(self, discriminator: Discriminator, levels: list[Tensor], prediction: Prediction) -> None:
        prediction.mask_logits = self.logits(discriminator, levels)


def _cross_entropy(target: Tensor, log_probability: Tensor) -> Tensor:
    """`[B,M,H,W]` each -> `[B]`, the mean over all pixels."""
    return -(target * log_probability).sum(dim=1).mean(dim=(1, 2))
