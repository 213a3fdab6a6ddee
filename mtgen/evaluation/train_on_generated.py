"""Base classes of metrics that train a model on generated images and test it on real ones."""

from torch import Tensor

from mtgen.evaluation.base import MetricContext, Skipped, Stream
from mtgen.evaluation.collectors.uniform_subsample import MAX_ROWS_KEPT, UniformSubsample
from mtgen.evaluation.metric import Metric
from mtgen.evaluation.reference.classifier import shrink_images
from mtgen.evaluation.reference.training import MIN_IMAGES_PER_CLASS, ReferenceModel, TrainingSpec
from mtgen.schema import Batch, Canvas, Prediction


class TrainedScore(Metric):
    """A score on the real test split of a model that is trained, at the first test image, on the images kept by then.

    Small images and their labels are kept, as many as are generated, but at most 10,000: a uniform subsample of the
    stream.

    Attributes:
        name: name of the (first) number.
        classes: number of classes of the labels.
    """

    quick = False
    name: str
    classes: int

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        self.kept = self.add_state("kept", UniformSubsample(min(context.samples, MAX_ROWS_KEPT)))
        # not part of the state: it is trained again, or loaded from the cache
        self._model: ReferenceModel | None = None

    def keep(self, image: Tensor, label: Tensor, position: Tensor | None = None) -> None:
        """Take in images `[B,C,H,W]` in [-1, 1] and their labels, at the positions `[B]`; default: the next ones."""
        if len(image):
            self.kept.update(shrink_images(image), label, position=position)

    def trained_model(self) -> ReferenceModel:
        """The model.

        Raises:
            Skipped: there are too few images to train it on.
        """
        if self._model is None:
            needed = MIN_IMAGES_PER_CLASS * self.classes
            if len(self.kept) < needed:
                raise Skipped(
                    f"at least {needed} images to train on are needed, {MIN_IMAGES_PER_CLASS} per class; "
                    f"there are {len(self.kept)}"
                )
            _, image, label = self.kept.rows()
            context, stage = self.context, f"train for {self.name}"
            spec = TrainingSpec(
                context.seed,
                context.device,
                lambda done, total: context.progress(stage, done, total),
                context.run_cache.extend(trained_for=self.name),
            )
            self._model = self.train(image, label, spec)
        return self._model

    def train(self, image: Tensor, label: Tensor, spec: TrainingSpec) -> ReferenceModel:
        """A model trained on images `[N,C,H,W]` uint8 and their labels."""
        raise NotImplementedError


class TrainedOnGenerated(TrainedScore):
    """The model is trained on generated images, and on the labels they are conditioned on or generated with."""

    streams = (Stream.GENERATED, Stream.TEST)

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        self.keep(canvas.image, self.generated_labels(canvas, labels))

    def generated_labels(self, canvas: Canvas, labels: Tensor) -> Tensor:
        """The labels of a canvas, one row per image; `Skipped` where it has none."""
        raise NotImplementedError


class TrainedOnReal(TrainedScore):
    """The same score for real training images in place of generated ones: what a perfect generator would reach."""

    streams = (Stream.TRAIN, Stream.TEST)
    on_request = True

    def update_train(self, batch: Batch) -> None:
        label, known = self.real_labels(batch)
        self.keep(batch.image[known], label[known], batch.position[known.cpu()])

    def real_labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The labels of a batch, and which of its samples have one, `[B]` bool."""
        raise NotImplementedError
