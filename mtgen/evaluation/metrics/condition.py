"""Whether an image conditioned on one modality of a test sample is of that sample's class."""

from mtgen.evaluation.base import MetricContext, Skipped, Stream, required_classes, required_condition
from mtgen.evaluation.collectors.ratio import Ratio
from mtgen.evaluation.metric import METRICS, Metric
from mtgen.schema import Batch, Canvas


class _ConditionAccuracy(Metric):
    """Fraction of the generated images for which the reference classifier predicts the class of the test sample.

    One image is generated for each test sample that has the modality, conditioned on that modality alone.
    """

    streams = (Stream.CONDITIONS,)
    quick = False
    needs_reference_models = True

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        if required_classes(context.card) == 1:
            raise Skipped("the data set has a single class")
        required_condition(context, self.conditions[0])
        self.accuracy = self.add_state("accuracy", Ratio())

    def update_condition(self, name: str, batch: Batch, canvas: Canvas) -> None:
        labeled = batch.present["class"]
        if labeled.any():
            predicted = self.reference_models.predict_class(canvas.image[labeled])
            self.accuracy.update(int((predicted == batch.label[labeled].cpu()).sum()), int(labeled.sum()))

    def compute(self) -> dict[str, float]:
        name = self.conditions[0]
        return {f"condition/{name}": self.accuracy.compute(f"no test sample has a class and the modality {name!r}")}


@METRICS.register("condition/class")
class ClassConditionAccuracy(_ConditionAccuracy):
    """Conditioned on the class."""

    numbers = {"condition/class": "higher"}
    conditions = ("class",)


@METRICS.register("condition/caption")
class CaptionConditionAccuracy(_ConditionAccuracy):
    """Conditioned on the caption."""

    numbers = {"condition/caption": "higher"}
    conditions = ("caption",)


@METRICS.register("condition/sound")
class SoundConditionAccuracy(_ConditionAccuracy):
    """Conditioned on a recording that no training sample has."""

    numbers = {"condition/sound": "higher"}
    conditions = ("sound",)


@METRICS.register("condition/image")
class ImageConditionAccuracy(_ConditionAccuracy):
    """Conditioned on the embedding of another image."""

    numbers = {"condition/image": "higher"}
    conditions = ("image",)
