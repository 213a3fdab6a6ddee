"""How close reconstructions of real test images come to what a network sees in those images."""

from torch import Tensor

from mtgen.evaluation.metric import METRICS, Metric, MetricContext, Skipped


@METRICS.register("test/reconstruction_features")
class ReconstructionFeatures(Metric):
    """Squared distance of an image's features from its reconstruction's, over that of two different test images, both averaged.

    0: the same; 1: no more alike than two test images drawn at random, whose mean squared distance is twice the trace of the covariance.
    Source: Johnson et al. 2016 (distance of features), in proportion to the data's own spread, so that extractors can be compared.
    """

    numbers = {"test/reconstruction_features_NAME": "lower"}
    quick = False
    reconstructs = True
    compared = ("test",)

    def __init__(self, setting: MetricContext) -> None:
        super().__init__(setting)
        self.total = 0.0
        self.count = 0

    def update_reconstructed(self, features: Tensor, rebuilt: Tensor) -> None:
        self.total += float((features.double() - rebuilt.double()).square().sum())
        self.count += len(features)

    def compute(self) -> dict[str, float]:
        spread = 2 * float(self.features.get("test", 2).covariance.trace())
        if not self.count:
            raise Skipped("the run does not reconstruct images")
        if not spread > 0:
            raise Skipped("the test images are all the same to the extractor")
        return {f"test/reconstruction_features_{self.features.name}": self.total / self.count / spread}
