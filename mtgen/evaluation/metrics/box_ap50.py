"""Detection on real test images."""

from mtgen.evaluation.base import MetricContext, Skipped, Stream, required_classes
from mtgen.evaluation.collectors.box_average_precision import BoxAveragePrecision
from mtgen.evaluation.metric import METRICS, Metric
from mtgen.schema import Batch, Prediction


@METRICS.register("test/box_ap50")
class BoxAP(Metric):
    """Average precision (COCO) at an IoU of 0.5, and its mean over 0.5 to 0.95, on the test images with known boxes."""

    numbers = {"test/box_ap50": "higher", "test/box_ap": "higher"}
    streams = (Stream.TEST,)

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        self.precision = self.add_state("precision", BoxAveragePrecision(required_classes(context.card)))

    def update_test(self, batch: Batch, prediction: Prediction) -> None:
        if prediction.boxes is None:
            raise Skipped("the run does not predict boxes")
        if batch.boxes is not None:
            known = batch.present["boxes"]
            self.precision.update(batch.boxes[known], prediction.boxes[known])

    def compute(self) -> dict[str, float]:
        half, mean = self.precision.compute()
        return {"test/box_ap50": half, "test/box_ap": mean}
