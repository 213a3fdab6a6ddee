"""Segmentation of real test images."""

from mtgen.evaluation.base import MetricContext, Stream, required_logits, required_mask_classes
from mtgen.evaluation.collectors.confusion_matrix import ConfusionMatrix
from mtgen.evaluation.metric import METRICS, Metric
from mtgen.schema import Batch, Prediction


@METRICS.register("test/mask_miou")
class MaskIoU(Metric):
    """Mean IoU of the mask classes, from one confusion matrix over all pixels of the split."""

    numbers = {"test/mask_miou": "higher"}
    streams = (Stream.TEST,)

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        self.confusion = self.add_state("confusion", ConfusionMatrix(required_mask_classes(context.card)))

    def update_test(self, batch: Batch, prediction: Prediction) -> None:
        logits, labeled = required_logits(prediction.mask_logits, "masks"), batch.present["mask"]
        self.confusion.update(batch.mask[labeled], logits.argmax(1)[labeled])

    def compute(self) -> dict[str, float]:
        return {"test/mask_miou": self.confusion.mean_iou()}
