"""Diversity of generated images within their class, relative to real images."""

from torch import Tensor

from mtgen.evaluation.base import MetricContext, Skipped, Stream, required_conditioned_classes
from mtgen.evaluation.collectors.class_moments import ClassMoments
from mtgen.evaluation.metric import METRICS, Metric
from mtgen.schema import Batch, Canvas, Prediction

MIN_DIVERSITY_IMAGES = 10
"""Images of a class needed for its deviation to count: with n images it is underestimated by about 1 / 2n."""


@METRICS.register("generated/diversity")
class Diversity(Metric):
    """Standard deviation of generated images within a class over that of real ones: 1: as diverse, 0: collapsed.

    The deviation of a class is the root of the mean over pixels of the variance over its images. The mean over the
    classes and the worst class are reported. Real images are those of the training split, or of the test split where
    there is no training split.
    """

    numbers = {"generated/diversity": None, "generated/diversity_worst": None}
    streams = (Stream.TRAIN, Stream.GENERATED, Stream.TEST)

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        classes = required_conditioned_classes(context)
        self.train = self.add_state("train", ClassMoments(classes))
        self.test = self.add_state("test", ClassMoments(classes))
        self.generated = self.add_state("generated", ClassMoments(classes))

    def update_train(self, batch: Batch) -> None:
        _update_labeled(self.train, batch)

    def update_test(self, batch: Batch, prediction: Prediction) -> None:
        _update_labeled(self.test, batch)

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        self.generated.update(canvas.image, labels)

    def compute(self) -> dict[str, float]:
        real = self.train if self.train.count.any() else self.test
        spread = real.deviation()
        counted = (real.count >= MIN_DIVERSITY_IMAGES) & (self.generated.count >= MIN_DIVERSITY_IMAGES) & (spread > 0)
        if not counted.any():
            raise Skipped(
                f"no class has {MIN_DIVERSITY_IMAGES} real images that differ and {MIN_DIVERSITY_IMAGES} generated ones"
            )
        ratio = self.generated.deviation()[counted] / spread[counted]
        return {"generated/diversity": ratio.mean().item(), "generated/diversity_worst": ratio.min().item()}


def _update_labeled(moments: ClassMoments, batch: Batch) -> None:
    labeled = batch.present["class"]
    moments.update(batch.image[labeled], batch.label[labeled])
