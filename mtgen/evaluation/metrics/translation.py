"""Whether translated images are of the domain asked for, and still what they were."""

from mtgen.evaluation.metric import METRICS, Metric, MetricContext, Skipped, required_classes, share
from mtgen.schema import Batch, Canvas


class _Translated(Metric):
    """Share of the test images, each translated into every domain but its own, that an independent classifier reads rightly."""

    quick = False
    independent = True
    kind: str
    name: str

    def __init__(self, setting: MetricContext) -> None:
        super().__init__(setting)
        if required_classes(setting.card) == 1:
            raise Skipped("the data set has a single class")
        if setting.translates is None:
            raise Skipped("the run does not translate images")
        if setting.translates != self.kind:
            raise Skipped(
                f"the domains of the run's translation are not of the kind {self.kind!r} but {setting.translates!r}"
            )
        self.right = self.total = 0

    def compute(self) -> dict[str, float]:
        return {self.name: share(self.right, self.total, "test image with a class was translated")}


@METRICS.register("translation/class_kept")
class TranslationKeepsClass(_Translated):
    """Read as their own class by a classifier that is trained on the real training images of the domain asked for."""

    kind, name = "domain", "translation/class_kept"
    numbers = {name: "higher"}

    def update_translation(self, to: int, batch: Batch, canvas: Canvas) -> None:
        labeled = batch.present["class"]
        if labeled.any():
            read = self.reference_models.predict_class(canvas.image[labeled], to)
            self.right += int((read == batch.label[labeled].cpu()).sum())
            self.total += int(labeled.sum())


@METRICS.register("translation/class_reached")
class ClassReached(_Translated):
    """Where classes are the domains: read as the class asked for by a classifier that is trained on real training images."""

    kind, name = "class", "translation/class_reached"
    numbers = {name: "higher"}

    def update_translation(self, to: int, batch: Batch, canvas: Canvas) -> None:
        self.right += int((self.reference_models.predict_class(canvas.image) == to).sum())
        self.total += len(batch)
