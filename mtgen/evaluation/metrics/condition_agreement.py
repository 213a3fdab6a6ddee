"""Whether an image that is drawn for a condition alone shows what was asked for."""

from mtgen.evaluation.classifier import reduced
from mtgen.evaluation.metric import METRICS, Metric, Setting, required_classes, required_condition, share
from mtgen.schema import Batch, Canvas


class _Agreement(Metric):
    """Share of the test samples with a class and the modality in whose place an image is drawn that an independent classifier, trained
    on real training images, reads as of their class. What is asked for (a recording, a caption) is unseen: it is of the test split.
    """

    quick = False
    modality: str

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        required_classes(setting.card)
        required_condition(setting, self.modality)
        self.asks = (self.modality,)
        self.right = self.total = 0
        setting.judges.want_classifier()

    def update_conditioned(self, modality: str, batch: Batch, canvas: Canvas) -> None:
        rows = batch.present["class"]
        if modality == self.modality and rows.any():
            read = self.setting.judges.classifier().read(reduced(canvas.image[rows]))
            self.right += int((read == batch.label[rows].cpu()).sum())
            self.total += int(rows.sum())

    def compute(self) -> dict[str, float]:
        what = f"test image carries a class and what {self.modality!r} is taken from"
        return {f"condition/{self.modality}_agreement": share(self.right, self.total, what)}


def _of(modality: str) -> None:
    METRICS.register(f"condition/{modality}_agreement")(type(f"{modality.title()}Agreement", (_Agreement,), {"modality": modality}))


for _modality in ("class", "caption", "sound", "image", "labels"):
    _of(_modality)
