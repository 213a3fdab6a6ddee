"""Whether samples differ as much from each other as real images do, whatever their classes."""

import torch
from torch import Tensor

from mtgen.evaluation.metric import METRICS, Metric, MetricContext, Skipped
from mtgen.evaluation.metrics.diversity import MIN_DIVERSITY_IMAGES
from mtgen.evaluation.moments import ClassMoments
from mtgen.schema import Batch, Canvas, Prediction


@METRICS.register("generated/spread")
class Spread(Metric):
    """Standard deviation of all generated images over that of all real ones: for data without classes, what diversity is within them.

    With classes it says less than `generated/diversity`: a generator that has collapsed to one image a class still spreads over them. Real
    images are those of the training split, or of the test split where that is not given.
    """

    numbers = {"generated/spread": None}

    def __init__(self, setting: MetricContext) -> None:
        super().__init__(setting)
        self.train = ClassMoments(1)
        self.test = ClassMoments(1)
        self.generated = ClassMoments(1)

    def update_train(self, batch: Batch) -> None:
        self._take(self.train, batch.image)

    def update_real(self, batch: Batch, prediction: Prediction, reconstruction: Canvas | None) -> None:
        self._take(self.test, batch.image)

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        self._take(self.generated, canvas.image)

    @staticmethod
    def _take(moments: ClassMoments, image: Tensor) -> None:
        moments.update(image, torch.zeros(len(image), dtype=torch.int64))

    def compute(self) -> dict[str, float]:
        real = self.train if self.train.count.any() else self.test
        if min(real.count.item(), self.generated.count.item()) < MIN_DIVERSITY_IMAGES or real.deviation().item() == 0:
            raise Skipped(
                f"there are no {MIN_DIVERSITY_IMAGES} real images that differ and {MIN_DIVERSITY_IMAGES} generated ones"
            )
        return {"generated/spread": (self.generated.deviation() / real.deviation()).item()}
