"""Whether the masks that are drawn are those of the images, as a reader sees them that knows nothing of the model."""

from torch import Tensor

from mtgen.evaluation.confusion import Confusion
from mtgen.evaluation.metric import METRICS, Metric, MetricContext, Skipped, required_mask_classes
from mtgen.evaluation.segmenter import shrink_mask
from mtgen.schema import Canvas, Prediction


@METRICS.register("generated/mask_iou")
class GeneratedMaskIoU(Metric):
    """Mean intersection over union of the generated masks and of an independent segmenter's reading of the generated images.

    The segmenter is trained on real training images; images are reduced to sides of 32 pixels.
    """

    numbers = {"generated/mask_iou": "higher"}
    quick = False
    independent = True

    def __init__(self, setting: MetricContext) -> None:
        super().__init__(setting)
        self.confusion = Confusion(required_mask_classes(setting.card))

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        if canvas.mask is None:
            raise Skipped("the run does not draw masks")
        read = self.reference_models.predict_mask(canvas.image)
        self.confusion.update(shrink_mask(canvas.mask.argmax(1), read[:, None]).long(), read.long())

    def compute(self) -> dict[str, float]:
        return {"generated/mask_iou": self.confusion.mean_iou()}
