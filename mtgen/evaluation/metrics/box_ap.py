"""How well the model finds boxes in real test images."""

from mtgen.evaluation.boxes import BoxPrecision
from mtgen.evaluation.metric import METRICS, Metric, Setting, Skipped, required_classes
from mtgen.schema import Batch, Canvas, Prediction


@METRICS.register("test/box_ap50")
class BoxAP(Metric):
    """COCO's average precision of the test images with boxes: at an overlap of 0.5 (AP50), and the mean over 0.5 to 0.95 (AP)."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        required_classes(setting.card)
        self.precision = BoxPrecision()

    def update_real(self, batch: Batch, prediction: Prediction, reconstruction: Canvas | None) -> None:
        if prediction.boxes is None or batch.boxes is None:
            raise Skipped("the run does not read boxes")
        rows = batch.present["boxes"]
        self.precision.update(batch.boxes[rows], prediction.boxes[rows])

    def compute(self) -> dict[str, float]:
        if not self.precision.boxes:
            raise Skipped("no test image carries a box")
        at_half, mean = self.precision.compute()
        return {"test/box_ap50": at_half, "test/box_ap": mean}
