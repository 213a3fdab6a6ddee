"""Whether an image that is drawn for a layout alone has everything where it was asked for."""

from mtgen.evaluation.boxes import BoxPrecision
from mtgen.evaluation.confusion import Confusion
from mtgen.evaluation.metric import METRICS, Metric, Setting, Skipped, required_classes, required_condition, required_mask_classes
from mtgen.schema import Batch, Canvas


@METRICS.register("condition/layout_agreement")
class LayoutAgreement(Metric):
    """Mean intersection over union of the masks that are asked for (the test split's) and those that an independent segmenter, trained
    on real training images, reads in what is drawn for them."""

    quick = False
    asks = ("layout",)

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.confusion = Confusion(required_mask_classes(setting.card))
        required_condition(setting, "layout")
        setting.judges.want_segmenter()

    def update_conditioned(self, modality: str, batch: Batch, canvas: Canvas) -> None:
        if modality == "layout":
            self.confusion.update(batch.mask.cpu(), self.setting.judges.segmenter().read(canvas.image))

    def compute(self) -> dict[str, float]:
        return {"condition/layout_agreement": self.confusion.mean_iou()}


@METRICS.register("condition/boxes_agreement")
class BoxesAgreement(Metric):
    """AP50 of the boxes that the model itself reads in what is drawn for the test split's boxes, with these as the truth."""

    asks = ("boxes",)

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        required_classes(setting.card)
        required_condition(setting, "boxes")
        if setting.predict is None:
            raise Skipped("the run does not read images")
        self.precision = BoxPrecision()

    def update_conditioned(self, modality: str, batch: Batch, canvas: Canvas) -> None:
        if modality != "boxes":
            return
        assert batch.boxes is not None and self.setting.predict is not None  # the loader was asked for boxes
        found = self.setting.predict(canvas.image).boxes
        if found is None:
            raise Skipped("the run does not read boxes")
        self.precision.update(batch.boxes, found)

    def compute(self) -> dict[str, float]:
        if not self.precision.boxes:
            raise Skipped("no test image carries a box")
        return {"condition/boxes_agreement": self.precision.compute()[0]}
