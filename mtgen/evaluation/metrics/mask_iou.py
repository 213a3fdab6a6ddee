"""Agreement of generated masks with the masks that a reference segmenter predicts on the generated images."""

from torch import Tensor

from mtgen.evaluation.base import MetricContext, Skipped, Stream, required_mask_classes
from mtgen.evaluation.collectors.confusion_matrix import ConfusionMatrix
from mtgen.evaluation.metric import METRICS, Metric
from mtgen.evaluation.reference.segmenter import shrink_mask
from mtgen.schema import Canvas, Prediction


@METRICS.register("generated/mask_iou")
class GeneratedMaskIoU(Metric):
    """Mean IoU of the generated masks and the masks that a reference segmenter predicts on the generated images.

    The segmenter is trained on real training images; images are reduced to sides of 32 pixels.
    """

    numbers = {"generated/mask_iou": "higher"}
    streams = (Stream.GENERATED,)
    quick = False
    needs_reference_models = True

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        self.confusion = self.add_state("confusion", ConfusionMatrix(required_mask_classes(context.card)))

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        if canvas.mask is None:
            raise Skipped("the run does not generate masks")
        predicted = self.reference_models.predict_mask(canvas.image)
        self.confusion.update(shrink_mask(canvas.mask.argmax(1), predicted[:, None]).long(), predicted.long())

    def compute(self) -> dict[str, float]:
        return {"generated/mask_iou": self.confusion.mean_iou()}
