"""Whether images that are asked for by one modality of a test sample alone are what that sample is."""

from mtgen.evaluation.metric import METRICS, Metric, MetricContext, Skipped, required_classes, required_condition, share
from mtgen.schema import Batch, Canvas


class _Reached(Metric):
    """Share of the images that an independent classifier, trained on real training images, reads as the sample's class.

    One image is drawn for each test sample that has the modality; nothing but that modality is asked for.
    """

    quick = False
    independent = True

    def __init__(self, setting: MetricContext) -> None:
        super().__init__(setting)
        if required_classes(setting.card) == 1:
            raise Skipped("the data set has a single class")
        required_condition(setting, self.conditions[0])
        self.right = self.total = 0

    def update_condition(self, name: str, batch: Batch, canvas: Canvas) -> None:
        labeled = batch.present["class"]
        if labeled.any():
            read = self.reference_models.predict_class(canvas.image[labeled])
            self.right += int((read == batch.label[labeled].cpu()).sum())
            self.total += int(labeled.sum())

    def compute(self) -> dict[str, float]:
        name = self.conditions[0]
        return {
            f"condition/{name}": share(
                self.right, self.total, f"test sample carries a class and what {name!r} is taken from"
            )
        }


@METRICS.register("condition/class")
class ByClass(_Reached):
    """Asked for by the class."""

    numbers = {"condition/class": "higher"}
    conditions = ("class",)


@METRICS.register("condition/caption")
class ByCaption(_Reached):
    """Asked for by the caption."""

    numbers = {"condition/caption": "higher"}
    conditions = ("caption",)


@METRICS.register("condition/sound")
class BySound(_Reached):
    """Asked for by the recording, which no training sample has."""

    numbers = {"condition/sound": "higher"}
    conditions = ("sound",)


@METRICS.register("condition/image")
class ByImage(_Reached):
    """Asked for by another image's embedding."""

    numbers = {"condition/image": "higher"}
    conditions = ("image",)
