"""Classification of real test images."""

from mtgen.evaluation.base import MetricContext, Stream, required_classes, required_logits
from mtgen.evaluation.collectors.ratio import Ratio
from mtgen.evaluation.metric import METRICS, Metric
from mtgen.schema import Batch, Prediction


@METRICS.register("test/class_accuracy")
class ClassAccuracy(Metric):
    """Fraction of the labeled test images whose class has the highest logit."""

    numbers = {"test/class_accuracy": "higher"}
    streams = (Stream.TEST,)

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        required_classes(context.card)
        self.accuracy = self.add_state("accuracy", Ratio())

    def update_test(self, batch: Batch, prediction: Prediction) -> None:
        logits, labeled = required_logits(prediction.class_logits, "classes"), batch.present["class"]
        self.accuracy.update(int((logits.argmax(1) == batch.label)[labeled].sum()), int(labeled.sum()))

    def compute(self) -> dict[str, float]:
        return {"test/class_accuracy": self.accuracy.compute("no test image has a class")}
