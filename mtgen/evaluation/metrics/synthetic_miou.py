"""Whether generated images and masks teach a segmenter to segment real images."""

import torch
from torch import Tensor

from mtgen.evaluation.base import MetricContext, Skipped, required_mask_classes
from mtgen.evaluation.collectors.confusion_matrix import ConfusionMatrix
from mtgen.evaluation.metric import METRICS
from mtgen.evaluation.reference.classifier import shrink_images
from mtgen.evaluation.reference.segmenter import Segmenter, shrink_mask
from mtgen.evaluation.reference.training import TrainingSpec
from mtgen.evaluation.train_on_generated import TrainedOnGenerated, TrainedOnReal, TrainedScore
from mtgen.schema import IGNORE_INDEX, Batch, Canvas, Prediction


class _SegmenterIoU(TrainedScore):
    """Mean IoU of a segmenter on the real test split; images and masks are reduced to sides of 32 pixels."""

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        self.classes = required_mask_classes(context.card)
        self.confusion = self.add_state("confusion", ConfusionMatrix(self.classes))

    def train(self, image: Tensor, label: Tensor, spec: TrainingSpec) -> Segmenter:
        return Segmenter(image, label, self.classes, spec)

    def update_test(self, batch: Batch, prediction: Prediction) -> None:
        mask, known = self.real_labels(batch)
        if known.any():
            predicted = self.trained_model().predict(shrink_images(batch.image[known]))
            self.confusion.update(mask[known].long(), predicted.long())

    def real_labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        mask = shrink_mask(batch.mask, shrink_images(batch.image))
        return mask, batch.present["mask"].cpu() & (mask != IGNORE_INDEX).flatten(1).any(1)

    def compute(self) -> dict[str, float]:
        return {self.name: self.confusion.mean_iou()}


@METRICS.register("generated/synthetic_miou")
class SyntheticMeanIoU(_SegmenterIoU, TrainedOnGenerated):
    """Mean IoU on the real test split of a segmenter trained only on generated images and masks.

    Source: Ravuri and Vinyals 2019 (the same for classes), with a small U-Net (`mtgen.evaluation.reference.segmenter`).
    """

    name = "generated/synthetic_miou"
    numbers = {name: "higher"}

    def generated_labels(self, canvas: Canvas, labels: Tensor) -> Tensor:
        if canvas.mask is None:
            raise Skipped("the run does not generate masks")
        size = torch.empty(0, 1, *shrink_images(canvas.image[:1]).shape[2:])
        return shrink_mask(canvas.mask.argmax(1), size)


@METRICS.register("real/miou")
class RealMeanIoU(_SegmenterIoU, TrainedOnReal):
    """The synthetic mean IoU of real training images and masks in place of generated ones."""

    name = "real/miou"
    numbers = {name: None}
