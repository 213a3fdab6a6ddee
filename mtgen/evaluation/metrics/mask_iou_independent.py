"""How well the masks that are drawn fit the images that are drawn with them, in the eyes of a network that knows real images alone."""

from torch import Tensor

from mtgen.evaluation.confusion import Confusion
from mtgen.evaluation.metric import METRICS, Metric, Setting, Skipped, required_mask_classes
from mtgen.schema import Canvas, Prediction


@METRICS.register("generated/mask_iou_independent")
class MaskIoUIndependent(Metric):
    """Mean intersection over union of the generated masks and of those that an independent segmenter, trained on real training images,
    reads in the generated images."""

    quick = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.confusion = Confusion(required_mask_classes(setting.card))
        if not setting.generates:
            raise Skipped("the run does not generate images")
        setting.judges.want_segmenter()

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        if canvas.mask is None:
            raise Skipped("the run does not draw masks")
        self.confusion.update(canvas.mask.argmax(1).cpu(), self.setting.judges.segmenter().read(canvas.image))

    def compute(self) -> dict[str, float]:
        return {"generated/mask_iou_independent": self.confusion.mean_iou()}
