"""How often the model reads in its own images the class that was asked for."""

from torch import Tensor

from mtgen.evaluation.metric import METRICS, Metric, MetricContext, asked_classes, required_logits, share
from mtgen.schema import Canvas, Prediction


@METRICS.register("generated/class_agreement")
class ClassAgreement(Metric):
    """Share of the generated images whose class, as the model reads it, is the one that was asked for."""

    numbers = {"generated/class_agreement": "higher"}

    def __init__(self, setting: MetricContext) -> None:
        super().__init__(setting)
        asked_classes(setting)
        self.right = self.total = 0

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        logits = required_logits(prediction.class_logits, "classes")
        self.right += int((logits.argmax(1) == labels).sum())
        self.total += len(labels)

    def compute(self) -> dict[str, float]:
        return {"generated/class_agreement": share(self.right, self.total, "image was generated")}
