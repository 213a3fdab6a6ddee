"""How well the boxes that are drawn fit the images that are drawn with them."""

from torch import Tensor

from mtgen.centres import decode_canvas
from mtgen.evaluation.boxes import BoxPrecision
from mtgen.evaluation.metric import METRICS, Metric, Setting, Skipped, required_classes
from mtgen.pictures import SURE
from mtgen.schema import Canvas, Prediction


@METRICS.register("generated/box_agreement")
class BoxAgreement(Metric):
    """Average precision at an overlap of 0.5 of the boxes that the model reads in its images, taking those it drew for true."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.boxes = BoxPrecision(required_classes(setting.card))

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        if canvas.boxes is None or prediction.boxes is None:
            raise Skipped("the run does not draw and read boxes")
        drawn = decode_canvas(canvas.boxes)
        sure = drawn[..., 5] >= SURE
        drawn[..., 4] = drawn[..., 4].where(sure, -1)
        self.boxes.update(drawn[..., :5], prediction.boxes)

    def compute(self) -> dict[str, float]:
        return {"generated/box_agreement": self.boxes.compute()[0]}
