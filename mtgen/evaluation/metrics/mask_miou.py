"""How well the model segments real test images."""

from mtgen.evaluation.confusion import Confusion
from mtgen.evaluation.metric import METRICS, Metric, MetricContext, required_logits, required_mask_classes
from mtgen.schema import Batch, Canvas, Prediction


@METRICS.register("test/mask_miou")
class MaskIoU(Metric):
    """Mean intersection over union of the mask classes, from one confusion matrix over the pixels of the whole split."""

    numbers = {"test/mask_miou": "higher"}

    def __init__(self, setting: MetricContext) -> None:
        super().__init__(setting)
        self.confusion = Confusion(required_mask_classes(setting.card))

    def update_real(self, batch: Batch, prediction: Prediction, reconstruction: Canvas | None) -> None:
        logits, labeled = required_logits(prediction.mask_logits, "masks"), batch.present["mask"]
        self.confusion.update(batch.mask[labeled], logits.argmax(1)[labeled])

    def compute(self) -> dict[str, float]:
        return {"test/mask_miou": self.confusion.mean_iou()}
