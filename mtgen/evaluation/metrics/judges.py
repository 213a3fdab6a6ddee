"""How far the independent networks can be trusted that judge generated images: what they reach on real test images."""

from mtgen.evaluation.classifier import reduced
from mtgen.evaluation.confusion import Confusion
from mtgen.evaluation.metric import METRICS, Metric, Setting, required_classes, required_mask_classes, share
from mtgen.schema import Batch, Canvas, Prediction


@METRICS.register("judge/real_accuracy")
class JudgeAccuracy(Metric):
    """Share of the real test images that the independent classifier reads rightly: what limits `condition/..._agreement`."""

    quick = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        required_classes(setting.card)
        setting.judges.want_classifier()
        self.right = self.total = 0

    def update_real(self, batch: Batch, prediction: Prediction, reconstruction: Canvas | None) -> None:
        rows = batch.present["class"]
        if rows.any():
            read = self.setting.judges.classifier().read(reduced(batch.image[rows]))
            self.right += int((read == batch.label[rows].cpu()).sum())
            self.total += int(rows.sum())

    def compute(self) -> dict[str, float]:
        return {"judge/real_accuracy": share(self.right, self.total, "test image carries a class")}


@METRICS.register("judge/real_miou")
class JudgeIoU(Metric):
    """Mean intersection over union of the independent segmenter on the real test images with a mask."""

    quick = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.confusion = Confusion(required_mask_classes(setting.card))
        setting.judges.want_segmenter()

    def update_real(self, batch: Batch, prediction: Prediction, reconstruction: Canvas | None) -> None:
        rows = batch.present["mask"]
        if rows.any():
            self.confusion.update(batch.mask[rows].cpu(), self.setting.judges.segmenter().read(batch.image[rows]))

    def compute(self) -> dict[str, float]:
        return {"judge/real_miou": self.confusion.mean_iou()}
