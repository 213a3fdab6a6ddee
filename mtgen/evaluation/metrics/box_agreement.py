"""How well the boxes that are drawn fit the images that are drawn with them."""

import torch
from torch import Tensor

from mtgen.centres import SURE, decode_canvas
from mtgen.evaluation.boxes import BoxPrecision
from mtgen.evaluation.metric import METRICS, Metric, Setting, Skipped, required_classes
from mtgen.schema import Canvas, Prediction


@METRICS.register("generated/box_agreement")
class BoxAgreement(Metric):
    """AP50 of the boxes that the model reads in the generated images, with the drawn ones (those it is sure of) as the truth."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        required_classes(setting.card)
        if not setting.generates:
            raise Skipped("the run does not generate images")
        self.precision = BoxPrecision()

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        if canvas.boxes is None or prediction.boxes is None:
            raise Skipped("the run does not draw boxes")
        drawn = decode_canvas(canvas.boxes)
        kind = torch.where(drawn[..., 5] >= SURE, drawn[..., 4], -1.0)
        self.precision.update(torch.cat([drawn[..., :4], kind[..., None]], -1), prediction.boxes)

    def compute(self) -> dict[str, float]:
        if not self.precision.boxes:
            raise Skipped(f"no box was drawn with a score of {SURE} or more")
        return {"generated/box_agreement": self.precision.compute()[0]}
