"""How well the boxes that are drawn fit the images that are drawn with them."""

from torch import Tensor

from mtgen.evaluation.boxes import BoxPrecision, confident_boxes
from mtgen.evaluation.metric import METRICS, Metric, MetricContext, Skipped, required_classes
from mtgen.evaluation.subsample import MAX_ROWS_KEPT, Choice
from mtgen.networks.center_maps import decode_canvas
from mtgen.schema import Canvas, Prediction


@METRICS.register("generated/box_agreement")
class BoxAgreement(Metric):
    """Average precision at an overlap of 0.5 of the boxes that the model reads in its images, taking those it drew for true.

    Over 10,000 images at most, a uniform choice of all.
    """

    name = "generated/box_agreement"
    numbers = {name: "higher"}

    def __init__(self, setting: MetricContext) -> None:
        super().__init__(setting)
        self.classes = required_classes(setting.card)
        self.kept = Choice(MAX_ROWS_KEPT)

    def read(self, canvas: Canvas, prediction: Prediction) -> Tensor:
        """`[B,M,6]` the boxes that are there in the image, as somebody reads it."""
        if prediction.boxes is None:
            raise Skipped("the run does not read boxes")
        return prediction.boxes

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        if canvas.boxes is None:
            raise Skipped("the run does not draw boxes")
        self.kept.update(confident_boxes(decode_canvas(canvas.boxes)), self.read(canvas, prediction))

    def compute(self) -> dict[str, float]:
        precision = BoxPrecision(self.classes)
        if len(self.kept):
            precision.update(*self.kept.rows()[1:])
        return {self.name: precision.compute()[0]}
