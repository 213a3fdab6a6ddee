"""Whether the boxes that are drawn are those of the images, as a reader sees them that knows nothing of the model."""

from torch import Tensor

from mtgen.centres import decode_canvas
from mtgen.evaluation.boxes import BoxPrecision, sure
from mtgen.evaluation.choice import MOST, Choice
from mtgen.evaluation.metric import METRICS, Metric, Setting, Skipped, required_classes
from mtgen.schema import Canvas, Prediction


@METRICS.register("generated/drawn_ap50")
class DrawnAP(Metric):
    """Average precision at an overlap of 0.5 of an independent detector's reading of the generated images, taking the drawn boxes for true.

    The detector is trained on real training images; images are reduced to sides of 32 pixels. Over 10,000 images at most, a uniform choice.
    """

    quick = False
    independent = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.classes, self.kept = required_classes(setting.card), Choice(MOST)

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        if canvas.boxes is None:
            raise Skipped("the run does not draw boxes")
        self.kept.update(sure(decode_canvas(canvas.boxes)), self.yardsticks.read_boxes(canvas.image))

    def compute(self) -> dict[str, float]:
        precision = BoxPrecision(self.classes)
        if len(self.kept):
            precision.update(*self.kept.rows()[1:])
        return {"generated/drawn_ap50": precision.compute()[0]}
