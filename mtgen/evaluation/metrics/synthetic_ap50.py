"""Whether generated images and boxes teach a detector to detect objects in real images."""

from torch import Tensor

from mtgen.evaluation.base import MetricContext, Skipped, required_classes
from mtgen.evaluation.collectors.box_average_precision import BoxAveragePrecision
from mtgen.evaluation.metric import METRICS
from mtgen.evaluation.reference.classifier import shrink_images
from mtgen.evaluation.reference.detector import Detector
from mtgen.evaluation.reference.training import TrainingSpec
from mtgen.evaluation.train_on_generated import TrainedOnGenerated, TrainedOnReal, TrainedScore
from mtgen.networks.center_maps import confident, decode_canvas
from mtgen.schema import Batch, Canvas, Prediction


class _DetectorPrecision(TrainedScore):
    """Average precision (COCO) of a detector on the real test split; images are reduced to sides of 32 pixels.

    Attributes:
        mean_name: name of the second number.
    """

    mean_name: str

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        self.classes = required_classes(context.card)
        self.precision = self.add_state("precision", BoxAveragePrecision(self.classes))

    def train(self, image: Tensor, label: Tensor, spec: TrainingSpec) -> Detector:
        if not (label[..., 4] >= 0).any():
            raise Skipped("the images to train on have no boxes")
        return Detector(image, label, self.classes, spec)

    def update_test(self, batch: Batch, prediction: Prediction) -> None:
        boxes, known = self.real_labels(batch)
        if known.any():
            predicted = self.trained_model().predict(shrink_images(batch.image[known]))
            self.precision.update(boxes[known].cpu(), predicted)

    def real_labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.boxes is None:
            raise Skipped("the run does not load boxes, so there are none to test on")
        return batch.boxes, batch.present["boxes"]

    def compute(self) -> dict[str, float]:
        half, mean = self.precision.compute()
        return {self.name: half, self.mean_name: mean}


@METRICS.register("generated/synthetic_ap50")
class SyntheticAP(_DetectorPrecision, TrainedOnGenerated):
    """Average precision on the real test split of a detector trained only on generated images and boxes.

    Source: Ravuri and Vinyals 2019 (the same for classes), with a small CenterNet
    (`mtgen.evaluation.reference.detector`).
    """

    name = "generated/synthetic_ap50"
    mean_name = "generated/synthetic_ap"
    numbers = {name: "higher", mean_name: "higher"}

    def generated_labels(self, canvas: Canvas, labels: Tensor) -> Tensor:
        if canvas.boxes is None:
            raise Skipped("the run does not generate boxes")
        return confident(decode_canvas(canvas.boxes))


@METRICS.register("real/ap50")
class RealAP(_DetectorPrecision, TrainedOnReal):
    """The synthetic average precision of real training images and boxes in place of generated ones."""

    name = "real/ap50"
    mean_name = "real/ap"
    numbers = {name: None, mean_name: None}
