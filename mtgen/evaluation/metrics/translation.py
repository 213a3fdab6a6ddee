"""Whether test images that are drawn anew in another domain show there what they should."""

from torch import Tensor

from mtgen.evaluation.classifier import reduced
from mtgen.evaluation.metric import METRICS, Metric, Setting, Skipped, required_classes, share
from mtgen.schema import Batch, Canvas


@METRICS.register("translation/class_kept")
class ClassKept(Metric):
    """Share of the test images, drawn anew in each other data set of the mixture, that keep their class, as an independent classifier
    reads it that was trained on the real training images of that data set alone."""

    quick = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        required_classes(setting.card)
        _required(setting, "domain", "the data sets of a mixture")
        self.right = self.total = 0
        for domain in range(len(setting.card.domains)):
            setting.judges.want_classifier(domain)

    def update_translated(self, batch: Batch, target: Tensor, canvas: Canvas) -> None:
        rows = batch.present["class"]
        for domain in target[rows].unique().tolist():
            here = rows & (target == domain)
            read = self.setting.judges.classifier(domain).read(reduced(canvas.image[here]))
            self.right += int((read == batch.label[here].cpu()).sum())
            self.total += int(here.sum())

    def compute(self) -> dict[str, float]:
        return {"translation/class_kept": share(self.right, self.total, "test image carries a class and has another domain")}


@METRICS.register("translation/class_reached")
class ClassReached(Metric):
    """Share of the test images, drawn anew as another class (each class in turn), that an independent classifier, trained on real
    training images, reads as of that class."""

    quick = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        required_classes(setting.card)
        _required(setting, "class", "classes")
        self.right = self.total = 0
        setting.judges.want_classifier()

    def update_translated(self, batch: Batch, target: Tensor, canvas: Canvas) -> None:
        read = self.setting.judges.classifier().read(reduced(canvas.image))
        self.right += int((read == target.cpu()).sum())
        self.total += len(target)

    def compute(self) -> dict[str, float]:
        return {"translation/class_reached": share(self.right, self.total, "test image carries a class")}


def _required(setting: Setting, kind: str, what: str) -> None:
    if setting.translates is None:
        raise Skipped("the run does not translate images")
    if setting.translates != kind:
        raise Skipped(f"the run does not translate between {what}")
