"""What images teach: a reader is trained on them alone, and tested on real images."""

from torch import Tensor

from mtgen.evaluation.classifier import shrink_images
from mtgen.evaluation.metric import Metric, MetricContext, Skipped
from mtgen.evaluation.reader_training import MIN_IMAGES_PER_CLASS, ReferenceModel, TrainingSpec
from mtgen.evaluation.subsample import MAX_ROWS_KEPT, Choice
from mtgen.schema import Batch, Canvas, Prediction


class TrainedScore(Metric):
    """A score on the real test split of a reader that is trained when the first test image comes, on what was kept by then.

    Kept are small images and their labels, as many as are generated, 10,000 at most: a uniform choice of all that came.

    Attributes:
        name: of the (first) number.
        classes: how many the labels have.
    """

    quick = False
    name: str
    classes: int

    def __init__(self, setting: MetricContext) -> None:
        super().__init__(setting)
        self.kept = Choice(min(setting.samples, MAX_ROWS_KEPT))
        self.reader: ReferenceModel | None = None

    def keep(self, image: Tensor, label: Tensor, position: Tensor | None = None) -> None:
        """Take in images `[B,C,H,W]` in [-1, 1] and their labels, at the positions `[B]`; default: those that follow."""
        if len(image):
            self.kept.update(shrink_images(image), label, position=position)

    def trained(self) -> ReferenceModel:
        """The reader.

        Raises:
            Skipped: there is too little to train it on.
        """
        if self.reader is None:
            needed = MIN_IMAGES_PER_CLASS * self.classes
            if len(self.kept) < needed:
                raise Skipped(
                    f"it takes {needed} images to train on, {MIN_IMAGES_PER_CLASS} a class; there are {len(self.kept)}"
                )
            _, image, label = self.kept.rows()
            setting, place = self.setting, self.setting.own.at(reader=self.name)
            making = TrainingSpec(
                setting.seed, setting.device, lambda n, of: setting.progress(f"train for {self.name}", n, of), place
            )
            self.reader = self.train(image, label, making)
        return self.reader

    def train(self, image: Tensor, label: Tensor, making: TrainingSpec) -> ReferenceModel:
        """A reader of images `[N,C,H,W]` uint8 and their labels."""
        raise NotImplementedError


class TrainedOnGenerated(TrainedScore):
    """The reader is trained on generated images and the labels that were asked for or drawn with them."""

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        self.keep(canvas.image, self.label(canvas, labels))

    def label(self, canvas: Canvas, labels: Tensor) -> Tensor:
        """The labels of a canvas, a row each; `Skipped` where it has none."""
        raise NotImplementedError


class TrainedOnReal(TrainedScore):
    """What the score would be if the generated images were real: as many training images in their place."""

    on_request = True

    def update_train(self, batch: Batch) -> None:
        label, known = self.true(batch)
        self.keep(batch.image[known], label[known], batch.position[known.cpu()])

    def true(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The labels of a batch, and which of its samples carry one, `[B]` bool."""
        raise NotImplementedError
