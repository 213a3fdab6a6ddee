"""Agreement of generated boxes with the boxes that the model predicts on the generated images."""

from torch import Tensor

from mtgen.evaluation.base import MetricContext, Skipped, Stream, required_classes
from mtgen.evaluation.collectors.box_average_precision import BoxAveragePrecision
from mtgen.evaluation.collectors.uniform_subsample import MAX_ROWS_KEPT, UniformSubsample
from mtgen.evaluation.metric import METRICS, Metric
from mtgen.networks.center_maps import confident, decode_canvas
from mtgen.schema import Canvas, Prediction


@METRICS.register("generated/box_agreement")
class BoxAgreement(Metric):
    """Average precision at an IoU of 0.5 of the model's predicted boxes, with the generated boxes as ground truth.

    Computed over a uniform subsample of at most 10,000 images.
    """

    name = "generated/box_agreement"
    numbers = {name: "higher"}
    streams = (Stream.GENERATED,)

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        self.classes = required_classes(context.card)
        self.kept = self.add_state("kept", UniformSubsample(MAX_ROWS_KEPT))

    def predict(self, canvas: Canvas, prediction: Prediction) -> Tensor:
        """Predicted boxes `[B,M,6]` in the images of a canvas."""
        if prediction.boxes is None:
            raise Skipped("the run does not predict boxes")
        return prediction.boxes

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        if canvas.boxes is None:
            raise Skipped("the run does not generate boxes")
        self.kept.update(confident(decode_canvas(canvas.boxes)), self.predict(canvas, prediction))

    def compute(self) -> dict[str, float]:
        precision = BoxAveragePrecision(self.classes)
        if len(self.kept):
            precision.update(*self.kept.rows()[1:])
        return {self.name: precision.compute()[0]}
