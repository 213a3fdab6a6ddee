"""Whether generated images and boxes teach a detector to find things in real images."""

from torch import Tensor

from mtgen.evaluation.boxes import BoxPrecision, confident_boxes
from mtgen.evaluation.classifier import shrink_images
from mtgen.evaluation.detector import Detector
from mtgen.evaluation.metric import METRICS, MetricContext, Skipped, required_classes
from mtgen.evaluation.reader_training import TrainingSpec
from mtgen.evaluation.train_on_generated import TrainedOnGenerated, TrainedOnReal, TrainedScore
from mtgen.networks.center_maps import decode_canvas
from mtgen.schema import Batch, Canvas, Prediction


class _Precision(TrainedScore):
    """Average precision (COCO) of a detector on the real test split, at an overlap of 0.5 and over 0.5 to 0.95; images of 32x32 at most."""

    averaged: str

    def __init__(self, setting: MetricContext) -> None:
        super().__init__(setting)
        self.classes = required_classes(setting.card)
        self.precision = BoxPrecision(self.classes)

    def train(self, image: Tensor, label: Tensor, making: TrainingSpec) -> Detector:
        if not (label[..., 4] >= 0).any():
            raise Skipped("the images to train on have no boxes")
        return Detector(image, label, self.classes, making)

    def update_real(self, batch: Batch, prediction: Prediction, reconstruction: Canvas | None) -> None:
        if batch.boxes is None:
            raise Skipped("the run is not told where boxes are, so that there are none to test on")
        boxes, known = self.true(batch)
        if known.any():
            self.precision.update(boxes[known].cpu(), self.trained().read(shrink_images(batch.image[known])))

    def true(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.boxes is None:
            raise Skipped("the run is not told where boxes are")
        return batch.boxes, batch.present["boxes"]

    def compute(self) -> dict[str, float]:
        half, mean = self.precision.compute()
        return {self.name: half, self.averaged: mean}


@METRICS.register("generated/synthetic_ap50")
class SyntheticAP(_Precision, TrainedOnGenerated):
    """Average precision on the real test split of a detector trained only on generated images and the boxes drawn with them.

    Source: Ravuri and Vinyals 2019 (the same for classes), with a small CenterNet (`mtgen.evaluation.detector`).
    """

    name, averaged = "generated/synthetic_ap50", "generated/synthetic_ap"
    numbers = {name: "higher", averaged: "higher"}

    def label(self, canvas: Canvas, labels: Tensor) -> Tensor:
        if canvas.boxes is None:
            raise Skipped("the run does not draw boxes")
        return confident_boxes(decode_canvas(canvas.boxes))


@METRICS.register("real/ap50")
class RealAP(_Precision, TrainedOnReal):
    """What the synthetic average precision would be if the generated images and boxes were real."""

    name, averaged = "real/ap50", "real/ap"
    numbers = {name: None, averaged: None}
