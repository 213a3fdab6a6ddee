"""What metrics of reconstructions in pixels share: a score of each test image and its reconstruction, averaged over the images."""

from torch import Tensor

from mtgen.evaluation.metric import Metric, MetricContext, Skipped
from mtgen.schema import Batch, Canvas, Prediction


class ReconstructionScore(Metric):
    """The mean of a score over the test images.

    Attributes:
        name: of the number.
    """

    reconstructs = True
    name: str

    def __init__(self, setting: MetricContext) -> None:
        super().__init__(setting)
        self.total = 0.0
        self.count = 0

    def score(self, image: Tensor, rebuilt: Tensor) -> Tensor:
        """Images and their reconstructions, `[B,C,H,W]` in [-1, 1] -> `[B]`."""
        raise NotImplementedError

    def update_real(self, batch: Batch, prediction: Prediction, reconstruction: Canvas | None) -> None:
        if reconstruction is None:
            raise Skipped("the run does not reconstruct images")
        self.total += float(self.score(batch.image, reconstruction.image.float().clamp(-1, 1)).sum())
        self.count += len(batch)

    def compute(self) -> dict[str, float]:
        if not self.count:
            raise Skipped("no test image")
        return {self.name: self.total / self.count}
