"""Whether images lie where they were asked to lie."""

from mtgen.evaluation.confusion import Confusion
from mtgen.evaluation.metric import METRICS, Metric, MetricContext, required_condition, required_mask_classes
from mtgen.evaluation.segmenter import shrink_mask
from mtgen.schema import Batch, Canvas


@METRICS.register("condition/layout_iou")
class LayoutIoU(Metric):
    """Mean intersection over union of the masks asked for, those of test samples, and of an independent segmenter's reading of the images.

    Nothing but the mask is asked for. The segmenter is trained on real training images; images are reduced to sides of 32 pixels.
    """

    numbers = {"condition/layout_iou": "higher"}
    quick = False
    independent = True
    conditions = ("layout",)

    def __init__(self, setting: MetricContext) -> None:
        super().__init__(setting)
        self.confusion = Confusion(required_mask_classes(setting.card))
        required_condition(setting, "layout")

    def update_condition(self, name: str, batch: Batch, canvas: Canvas) -> None:
        read = self.reference_models.predict_mask(canvas.image)
        self.confusion.update(shrink_mask(batch.mask, read[:, None]).long(), read.long())

    def compute(self) -> dict[str, float]:
        return {"condition/layout_iou": self.confusion.mean_iou()}
