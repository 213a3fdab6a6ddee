"""Whether the samples of a class differ as much from each other as real images of that class do."""

from torch import Tensor

from mtgen.evaluation.metric import METRICS, Metric, MetricContext, Skipped, asked_classes
from mtgen.evaluation.moments import ClassMoments
from mtgen.schema import Batch, Canvas, Prediction

MIN_DIVERSITY_IMAGES = 10
"""Images of a class that it takes for its deviation to be counted: with n images it comes out short by about 1 / 2n."""


@METRICS.register("generated/diversity")
class Diversity(Metric):
    """Standard deviation within a class of generated images over that of real ones: 1 is as diverse as real, 0 is collapsed.

    A class's deviation is the root of the mean over pixels of the variance over its images. The mean over classes and the
    worst class are reported. Real images are those of the training split, or of the test split where that is not given.
    """

    numbers = {"generated/diversity": None, "generated/diversity_worst": None}

    def __init__(self, setting: MetricContext) -> None:
        super().__init__(setting)
        classes = asked_classes(setting)
        self.train = ClassMoments(classes)
        self.test = ClassMoments(classes)
        self.generated = ClassMoments(classes)

    def update_train(self, batch: Batch) -> None:
        self._real(self.train, batch)

    def update_real(self, batch: Batch, prediction: Prediction, reconstruction: Canvas | None) -> None:
        self._real(self.test, batch)

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        self.generated.update(canvas.image, labels)

    @staticmethod
    def _real(moments: ClassMoments, batch: Batch) -> None:
        labeled = batch.present["class"]
        moments.update(batch.image[labeled], batch.label[labeled])

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
