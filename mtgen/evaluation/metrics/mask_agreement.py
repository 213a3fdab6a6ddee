"""How well the masks that are drawn fit the images that are drawn with them."""

from torch import Tensor

from mtgen.evaluation.confusion import Confusion
from mtgen.evaluation.metric import METRICS, Metric, MetricContext, Skipped, required_logits, required_mask_classes
from mtgen.schema import Canvas, Prediction


@METRICS.register("generated/mask_agreement")
class MaskAgreement(Metric):
    """Mean intersection over union of the generated masks and of those that the model reads in the generated images."""

    numbers = {"generated/mask_agreement": "higher"}

    def __init__(self, setting: MetricContext) -> None:
        super().__init__(setting)
        self.confusion = Confusion(required_mask_classes(setting.card))

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        logits = required_logits(prediction.mask_logits, "masks")
        if canvas.mask is None:
            raise Skipped("the run does not draw masks")
        self.confusion.update(canvas.mask.argmax(1), logits.argmax(1))

    def compute(self) -> dict[str, float]:
        return {"generated/mask_agreement": self.confusion.mean_iou()}
