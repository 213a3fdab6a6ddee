"""Whether generated images teach a classifier what real ones look like."""

from torch import Tensor

from mtgen.evaluation.classifier import Classifier, shrink_images
from mtgen.evaluation.metric import METRICS, MetricContext, Skipped, asked_classes, required_classes, share
from mtgen.evaluation.reader_training import TrainingSpec
from mtgen.evaluation.train_on_generated import TrainedOnGenerated, TrainedOnReal, TrainedScore
from mtgen.schema import Batch, Canvas, Prediction


class _Accuracy(TrainedScore):
    """Accuracy of a classifier on the real test split."""

    def __init__(self, setting: MetricContext) -> None:
        super().__init__(setting)
        self.classes = required_classes(setting.card)
        if self.classes == 1:
            raise Skipped("the data set has a single class")
        self.right = self.total = 0

    def train(self, image: Tensor, label: Tensor, making: TrainingSpec) -> Classifier:
        return Classifier(image, label, self.classes, making)

    def update_real(self, batch: Batch, prediction: Prediction, reconstruction: Canvas | None) -> None:
        label, known = self.true(batch)
        if known.any():
            read = self.trained().read(shrink_images(batch.image[known]))
            self.right += int((read == label[known].cpu()).sum())
            self.total += int(known.sum())

    def true(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.label, batch.present["class"]

    def compute(self) -> dict[str, float]:
        return {self.name: share(self.right, self.total, "test image carries a class")}


@METRICS.register("generated/cas")
class ClassificationAccuracyScore(_Accuracy, TrainedOnGenerated):
    """Accuracy on the real test split of a classifier trained only on generated images, with the classes asked for as labels.

    Source: Ravuri and Vinyals 2019, with a small classifier (`mtgen.evaluation.classifier`, images of 32x32 at most) in the
    place of their ResNet-50.
    """

    name = "generated/cas"
    numbers = {name: "higher"}

    def __init__(self, setting: MetricContext) -> None:
        super().__init__(setting)
        asked_classes(setting)

    def label(self, canvas: Canvas, labels: Tensor) -> Tensor:
        return labels


@METRICS.register("real/cas")
class RealClassificationAccuracyScore(_Accuracy, TrainedOnReal):
    """What the classification accuracy score would be if the generated images were real."""

    name = "real/cas"
    numbers = {name: None}
