"""How many real test images the model classifies rightly."""

from mtgen.evaluation.metric import METRICS, Metric, MetricContext, required_classes, required_logits, share
from mtgen.schema import Batch, Canvas, Prediction


@METRICS.register("test/class_accuracy")
class ClassAccuracy(Metric):
    """Share of the real test images with a class whose class has the highest logit."""

    numbers = {"test/class_accuracy": "higher"}

    def __init__(self, setting: MetricContext) -> None:
        super().__init__(setting)
        required_classes(setting.card)
        self.right = self.total = 0

    def update_real(self, batch: Batch, prediction: Prediction, reconstruction: Canvas | None) -> None:
        logits, labeled = required_logits(prediction.class_logits, "classes"), batch.present["class"]
        self.right += int((logits.argmax(1) == batch.label)[labeled].sum())
        self.total += int(labeled.sum())

    def compute(self) -> dict[str, float]:
        return {"test/class_accuracy": share(self.right, self.total, "test image carries a class")}
