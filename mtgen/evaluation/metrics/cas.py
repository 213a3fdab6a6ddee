"""Classification accuracy score: whether generated images teach a classifier to recognize real ones."""

from torch import Tensor

from mtgen.evaluation.base import MetricContext, Skipped, required_classes, required_conditioned_classes
from mtgen.evaluation.collectors.ratio import Ratio
from mtgen.evaluation.metric import METRICS
from mtgen.evaluation.reference.classifier import Classifier, shrink_images
from mtgen.evaluation.reference.training import TrainingSpec
from mtgen.evaluation.train_on_generated import TrainedOnGenerated, TrainedOnReal, TrainedScore
from mtgen.schema import Batch, Canvas, Prediction


class _ClassifierAccuracy(TrainedScore):
    """Accuracy of a classifier on the real test split."""

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        self.classes = required_classes(context.card)
        if self.classes == 1:
            raise Skipped("the data set has a single class")
        self.accuracy = self.add_state("accuracy", Ratio())

    def train(self, image: Tensor, label: Tensor, spec: TrainingSpec) -> Classifier:
        return Classifier(image, label, self.classes, spec)

    def update_test(self, batch: Batch, prediction: Prediction) -> None:
        label, known = self.real_labels(batch)
        if known.any():
            predicted = self.trained_model().predict(shrink_images(batch.image[known]))
            self.accuracy.update(int((predicted == label[known].cpu()).sum()), int(known.sum()))

    def real_labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.label, batch.present["class"]

    def compute(self) -> dict[str, float]:
        return {self.name: self.accuracy.compute("no test image has a class")}


@METRICS.register("generated/cas")
class ClassificationAccuracyScore(_ClassifierAccuracy, TrainedOnGenerated):
    """Accuracy on the real test split of a classifier trained only on generated images.

    An image is labeled by the class that it is conditioned on. Source: Ravuri and Vinyals 2019, with a small classifier
    (`mtgen.evaluation.reference.classifier`, images of at most 32x32) instead of their ResNet-50.
    """

    name = "generated/cas"
    numbers = {name: "higher"}

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        required_conditioned_classes(context)

    def generated_labels(self, canvas: Canvas, labels: Tensor) -> Tensor:
        return labels


@METRICS.register("real/cas")
class RealClassificationAccuracyScore(_ClassifierAccuracy, TrainedOnReal):
    """The classification accuracy score of real training images in place of generated ones."""

    name = "real/cas"
    numbers = {name: None}
