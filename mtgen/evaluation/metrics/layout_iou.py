"""Whether images conditioned on a layout follow it."""

from mtgen.evaluation.base import MetricContext, Stream, required_condition, required_mask_classes
from mtgen.evaluation.collectors.confusion_matrix import ConfusionMatrix
from mtgen.evaluation.metric import METRICS, Metric
from mtgen.evaluation.reference.segmenter import shrink_mask
from mtgen.schema import Batch, Canvas


@METRICS.register("condition/layout_iou")
class LayoutIoU(Metric):
    """Mean IoU of the masks of test samples and the reference segmenter's masks of images conditioned on them.

    The images are conditioned on the mask alone. The segmenter is trained on real training images; images are reduced
    to sides of 32 pixels.
    """

    numbers = {"condition/layout_iou": "higher"}
    streams = (Stream.CONDITIONS,)
    conditions = ("layout",)
    quick = False
    needs_reference_models = True

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        self.confusion = self.add_state("confusion", ConfusionMatrix(required_mask_classes(context.card)))
        required_condition(context, "layout")

    def update_condition(self, name: str, batch: Batch, canvas: Canvas) -> None:
        predicted = self.reference_models.predict_mask(canvas.image)
        self.confusion.update(shrink_mask(batch.mask, predicted[:, None]).long(), predicted.long())

    def compute(self) -> dict[str, float]:
        return {"condition/layout_iou": self.confusion.mean_iou()}
