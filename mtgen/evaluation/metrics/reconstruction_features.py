"""Perceptual distance of reconstructions: distance from the original in the features of a network."""

from torch import Tensor

from mtgen.evaluation.base import MetricContext, Skipped, Stream
from mtgen.evaluation.collectors.ratio import Ratio
from mtgen.evaluation.metric import METRICS, Metric


@METRICS.register("test/reconstruction_features")
class ReconstructionFeatures(Metric):
    """Mean squared distance of an image's features from its reconstruction's, over that of two different test images.

    0: identical; 1: as far apart as two random test images, whose mean squared distance is twice the trace of the
    covariance.
    Source: Johnson et al. 2016 (distance of features), normalized by the data's own spread, so that extractors are
    comparable.
    """

    numbers = {"test/reconstruction_features_NAME": "lower"}
    streams = (Stream.RECONSTRUCTION_FEATURES,)
    compares = (Stream.TEST,)
    quick = False

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        self.distance = self.add_state("distance", Ratio())

    def update_reconstruction_features(self, real: Tensor, reconstructed: Tensor) -> None:
        self.distance.update(float((real.double() - reconstructed.double()).square().sum()), len(real))

    def compute(self) -> dict[str, float]:
        spread = 2 * float(self.features.get(Stream.TEST, 2).covariance.trace())
        distance = self.distance.compute("the run does not reconstruct images")
        if not spread > 0:
            raise Skipped("all test images have the same features")
        return {f"test/reconstruction_features_{self.features.name}": distance / spread}
