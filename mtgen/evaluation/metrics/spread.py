"""Diversity of all generated images, relative to real images."""

import torch
from torch import Tensor

from mtgen.evaluation.base import MetricContext, Skipped, Stream
from mtgen.evaluation.collectors.class_moments import ClassMoments
from mtgen.evaluation.metric import METRICS, Metric
from mtgen.evaluation.metrics.diversity import MIN_DIVERSITY_IMAGES
from mtgen.schema import Batch, Canvas, Prediction


@METRICS.register("generated/spread")
class Spread(Metric):
    """Standard deviation of all generated images over that of all real ones.

    It measures diversity for data without classes. With classes, `generated/diversity` is more informative: a generator
    that has collapsed to one image per class still has a high spread. Real images are those of the training split, or
    of the test split where there is no training split.
    """

    numbers = {"generated/spread": None}
    streams = (Stream.TRAIN, Stream.GENERATED, Stream.TEST)

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        self.train = self.add_state("train", ClassMoments(1))
        self.test = self.add_state("test", ClassMoments(1))
        self.generated = self.add_state("generated", ClassMoments(1))

    def update_train(self, batch: Batch) -> None:
        _update(self.train, batch.image)

    def update_test(self, batch: Batch, prediction: Prediction) -> None:
        _update(self.test, batch.image)

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        _update(self.generated, canvas.image)

    def compute(self) -> dict[str, float]:
        real = self.train if self.train.count.any() else self.test
        if min(real.count.item(), self.generated.count.item()) < MIN_DIVERSITY_IMAGES or real.deviation().item() == 0:
            raise Skipped(
                f"there are fewer than {MIN_DIVERSITY_IMAGES} real images that differ, or than {MIN_DIVERSITY_IMAGES} "
                "generated ones"
            )
        return {"generated/spread": (self.generated.deviation() / real.deviation()).item()}


def _update(moments: ClassMoments, image: Tensor) -> None:
    moments.update(image, torch.zeros(len(image), dtype=torch.int64))
