"""How well the model finds the boxes of real test images."""

from mtgen.evaluation.boxes import BoxPrecision
from mtgen.evaluation.metric import METRICS, Metric, MetricContext, Skipped, required_classes
from mtgen.schema import Batch, Canvas, Prediction


@METRICS.register("test/box_ap50")
class BoxAP(Metric):
    """Average precision (COCO) at an overlap of 0.5, and its mean over 0.5 to 0.95, over the test images whose boxes are known."""

    numbers = {"test/box_ap50": "higher", "test/box_ap": "higher"}

    def __init__(self, setting: MetricContext) -> None:
        super().__init__(setting)
        self.boxes = BoxPrecision(required_classes(setting.card))

    def update_real(self, batch: Batch, prediction: Prediction, reconstruction: Canvas | None) -> None:
        if prediction.boxes is None:
            raise Skipped("the run does not read boxes")
        if batch.boxes is not None:
            known = batch.present["boxes"]
            self.boxes.update(batch.boxes[known], prediction.boxes[known])

    def compute(self) -> dict[str, float]:
        half, mean = self.boxes.compute()
        return {"test/box_ap50": half, "test/box_ap": mean}
