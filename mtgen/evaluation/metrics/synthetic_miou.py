"""Whether generated images and masks teach a segmenter to segment real images."""

import torch
from torch import Tensor

from mtgen.evaluation.classifier import shrink_images
from mtgen.evaluation.confusion import Confusion
from mtgen.evaluation.metric import METRICS, MetricContext, Skipped, required_mask_classes
from mtgen.evaluation.reader_training import TrainingSpec
from mtgen.evaluation.segmenter import Segmenter, shrink_mask
from mtgen.evaluation.train_on_generated import TrainedOnGenerated, TrainedOnReal, TrainedScore
from mtgen.schema import IGNORE_INDEX, Batch, Canvas, Prediction


class _MeanIoU(TrainedScore):
    """Mean intersection over union of a segmenter on the real test split; images and masks are reduced to sides of 32 pixels."""

    def __init__(self, setting: MetricContext) -> None:
        super().__init__(setting)
        self.classes = required_mask_classes(setting.card)
        self.confusion = Confusion(self.classes)

    def train(self, image: Tensor, label: Tensor, making: TrainingSpec) -> Segmenter:
        return Segmenter(image, label, self.classes, making)

    def update_real(self, batch: Batch, prediction: Prediction, reconstruction: Canvas | None) -> None:
        mask, known = self.true(batch)
        if known.any():
            read = self.trained().read(shrink_images(batch.image[known]))
            self.confusion.update(mask[known].long(), read.long())

    def true(self, batch: Batch) -> tuple[Tensor, Tensor]:
        mask = shrink_mask(batch.mask, shrink_images(batch.image))
        return mask, batch.present["mask"].cpu() & (mask != IGNORE_INDEX).flatten(1).any(1)

    def compute(self) -> dict[str, float]:
        return {self.name: self.confusion.mean_iou()}


@METRICS.register("generated/synthetic_miou")
class SyntheticMeanIoU(_MeanIoU, TrainedOnGenerated):
    """Mean IoU on the real test split of a segmenter trained only on generated images and the masks drawn with them.

    Source: Ravuri and Vinyals 2019 (the same for classes), with a small U-Net (`mtgen.evaluation.segmenter`).
    """

    name = "generated/synthetic_miou"
    numbers = {name: "higher"}

    def label(self, canvas: Canvas, labels: Tensor) -> Tensor:
        if canvas.mask is None:
            raise Skipped("the run does not draw masks")
        size = torch.empty(0, 1, *shrink_images(canvas.image[:1]).shape[2:])
        return shrink_mask(canvas.mask.argmax(1), size)


@METRICS.register("real/miou")
class RealMeanIoU(_MeanIoU, TrainedOnReal):
    """What the synthetic mean IoU would be if the generated images and masks were real."""

    name = "real/miou"
    numbers = {name: None}
