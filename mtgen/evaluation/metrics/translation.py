"""Whether translated images are in the target domain, and keep their content."""

from mtgen.evaluation.base import MetricContext, Skipped, Stream, required_classes
from mtgen.evaluation.collectors.ratio import Ratio
from mtgen.evaluation.metric import METRICS, Metric
from mtgen.schema import Batch, Canvas


class _TranslationAccuracy(Metric):
    """Accuracy of a reference classifier on the test images, each translated into every domain except its own.

    Attributes:
        kind: the kind of domains, see `MetricContext.translates`.
        name: name of the number.
    """

    streams = (Stream.TRANSLATIONS,)
    quick = False
    needs_reference_models = True
    kind: str
    name: str

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        if required_classes(context.card) == 1:
            raise Skipped("the data set has a single class")
        if context.translates is None:
            raise Skipped("the run does not translate images")
        if context.translates != self.kind:
            raise Skipped(f"the run translates between domains of the kind {context.translates!r}, not {self.kind!r}")
        self.accuracy = self.add_state("accuracy", Ratio())

    def compute(self) -> dict[str, float]:
        return {self.name: self.accuracy.compute("no test image with a class was translated")}


@METRICS.register("translation/class_kept")
class TranslationKeepsClass(_TranslationAccuracy):
    """Between data sets: fraction for which the target domain's classifier predicts the image's own class."""

    kind = "domain"
    name = "translation/class_kept"
    numbers = {name: "higher"}

    def update_translation(self, domain: int, batch: Batch, canvas: Canvas) -> None:
        labeled = batch.present["class"]
        if labeled.any():
            predicted = self.reference_models.predict_class(canvas.image[labeled], domain)
            self.accuracy.update(int((predicted == batch.label[labeled].cpu()).sum()), int(labeled.sum()))


@METRICS.register("translation/class_reached")
class TranslationReachesClass(_TranslationAccuracy):
    """Between classes: fraction for which the classifier predicts the target class."""

    kind = "class"
    name = "translation/class_reached"
    numbers = {name: "higher"}

    def update_translation(self, domain: int, batch: Batch, canvas: Canvas) -> None:
        predicted = self.reference_models.predict_class(canvas.image)
        self.accuracy.update(int((predicted == domain).sum()), len(batch))
