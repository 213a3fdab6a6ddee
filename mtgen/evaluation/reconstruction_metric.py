"""Base class of metrics that compare test images with their reconstructions pixel by pixel."""

from torch import Tensor

from mtgen.evaluation.base import MetricContext, Skipped, Stream
from mtgen.evaluation.collectors.ratio import Ratio
from mtgen.evaluation.metric import Metric
from mtgen.schema import Batch, Canvas


class ReconstructionScore(Metric):
    """The mean of a score over the test images.

    Attributes:
        name: name of the number.
    """

    streams = (Stream.RECONSTRUCTIONS,)
    name: str

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        self.mean = self.add_state("mean", Ratio())

    def score(self, image: Tensor, reconstruction: Tensor) -> Tensor:
        """Images and their reconstructions, `[B,C,H,W]` in [-1, 1] -> `[B]`."""
        raise NotImplementedError

    def update_reconstruction(self, batch: Batch, reconstruction: Canvas | None) -> None:
        if reconstruction is None:
            raise Skipped("the run does not reconstruct images")
        score = self.score(batch.image, reconstruction.image.float().clamp(-1, 1))
        self.mean.update(float(score.sum()), len(batch))

    def compute(self) -> dict[str, float]:
        return {self.name: self.mean.compute("there is no test image")}
