"""Whether generated images teach a classifier what real ones look like."""

import torch
from torch import Tensor

from mtgen.evaluation.classifier import Classifier, reduced
from mtgen.evaluation.metric import METRICS, Metric, Setting, Skipped, required_classes, share
from mtgen.schema import Batch, Canvas, Prediction

FEWEST = 10
"""Images a class that it takes to train a classifier."""


class _Score(Metric):
    """Accuracy on the real test split of a classifier that is trained when the first test image comes, on what was kept by then.

    Kept are small images and their classes: all that come, or, beyond `setting.samples`, a uniform choice of them (Vitter
    1985, algorithm R).
    """

    quick = False
    name: str

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.classes = required_classes(setting.card)
        if self.classes == 1:
            raise Skipped("the data set has a single class")
        self.random = torch.Generator().manual_seed(setting.seed)
        self.image: list[Tensor] = []
        self.label: list[int] = []
        self.classifier: Classifier | None = None
        self.seen = self.right = self.total = 0

    def _keep(self, image: Tensor, label: Tensor) -> None:
        for one, number in zip(reduced(image), label.tolist(), strict=True):
            self.seen += 1
            place = self.seen - 1 if self.seen <= self.setting.samples else int(torch.randint(self.seen, (), generator=self.random))
            if place < self.setting.samples:
                self.image[place : place + 1], self.label[place : place + 1] = [one.clone()], [number]

    def update_real(self, batch: Batch, prediction: Prediction, reconstruction: Canvas | None) -> None:
        labelled = batch.present["class"]
        if not labelled.any():
            return
        self.classifier = self.classifier or self._trained()
        read = self.classifier.read(reduced(batch.image[labelled]))
        self.right += int((read == batch.label[labelled].cpu()).sum())
        self.total += int(labelled.sum())

    def _trained(self) -> Classifier:
        setting, needed = self.setting, FEWEST * self.classes
        if len(self.image) < needed:
            raise Skipped(f"it takes {needed} images to train on, {FEWEST} a class; there are {len(self.image)}")
        image, label = torch.stack(self.image), torch.tensor(self.label)
        self.image, self.label = [], []
        progress = setting.progress
        return Classifier(image, label, self.classes, setting.seed, setting.device, lambda n, of: progress(self.name, n, of))

    def compute(self) -> dict[str, float]:
        return {self.name: share(self.right, self.total, "test image carries a class")}


@METRICS.register("generated/cas")
class ClassificationAccuracyScore(_Score):
    """Accuracy on the real test split of a classifier trained only on generated images, with the classes asked for as labels.

    Source: Ravuri and Vinyals 2019, with a small classifier (`mtgen.evaluation.classifier`, images of 32x32 at most) in the
    place of their ResNet-50.
    """

    name = "generated/cas"

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        self._keep(canvas.image, labels)


@METRICS.register("real/cas")
class RealClassificationAccuracyScore(_Score):
    """What the classification accuracy score would be if the generated images were real: as many training images in their place."""

    name = "real/cas"
    on_request = True

    def update_train(self, batch: Batch) -> None:
        labelled = batch.present["class"]
        self._keep(batch.image[labelled], batch.label[labelled])
