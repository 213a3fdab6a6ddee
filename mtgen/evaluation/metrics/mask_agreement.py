"""Agreement of generated masks with the masks that the model predicts on the generated images."""

from torch import Tensor

from mtgen.evaluation.base import MetricContext, Skipped, Stream, required_logits, required_mask_classes
from mtgen.evaluation.collectors.confusion_matrix import ConfusionMatrix
from mtgen.evaluation.metric import METRICS, Metric
from mtgen.schema import Canvas, Prediction


@METRICS.register("generated/mask_agreement")
class MaskAgreement(Metric):
    """Mean IoU of the generated masks and the masks that the model predicts on the generated images."""

    numbers = {"generated/mask_agreement": "higher"}
    streams = (Stream.GENERATED,)

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        self.confusion = self.add_state("confusion", ConfusionMatrix(required_mask_classes(context.card)))

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        logits = required_logits(prediction.mask_logits, "masks")
        if canvas.mask is None:
            raise Skipped("the run does not generate masks")
        self.confusion.update(canvas.mask.argmax(1), logits.argmax(1))

    def compute(self) -> dict[str, float]:
        return {"generated/mask_agreement": self.confusion.mean_iou()}
