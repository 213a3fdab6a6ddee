"""Agreement of the class that an image is conditioned on with the class that the model predicts for it."""

from torch import Tensor

from mtgen.evaluation.base import MetricContext, Stream, required_conditioned_classes, required_logits
from mtgen.evaluation.collectors.ratio import Ratio
from mtgen.evaluation.metric import METRICS, Metric
from mtgen.schema import Canvas, Prediction


@METRICS.register("generated/class_agreement")
class ClassAgreement(Metric):
    """Fraction of the generated images for which the model predicts the class that they are conditioned on."""

    numbers = {"generated/class_agreement": "higher"}
    streams = (Stream.GENERATED,)

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        required_conditioned_classes(context)
        self.agreement = self.add_state("agreement", Ratio())

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        logits = required_logits(prediction.class_logits, "classes")
        self.agreement.update(int((logits.argmax(1) == labels).sum()), len(labels))

    def compute(self) -> dict[str, float]:
        return {"generated/class_agreement": self.agreement.compute("no image was generated")}
