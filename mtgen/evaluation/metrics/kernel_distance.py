"""Kernel distance of the distributions of generated and real images."""

from torch import Tensor

from mtgen.evaluation.base import Stream
from mtgen.evaluation.distances import CHUNK_ROWS
from mtgen.evaluation.metric import METRICS, Metric


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    """Sum of (a b / D + 1)^3 over all pairs of rows of `[A,D]`, `[B,D]`."""
    other = b.double().T / a.shape[1]
    return sum(float((rows.double() @ other).add_(1).pow_(3).sum()) for rows in a.split(CHUNK_ROWS))


def _diagonal(a: Tensor) -> float:
    return float((a.double().square().sum(1) / a.shape[1] + 1).pow(3).sum())


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy of `[A,D]` and `[B,D]`; can be below 0."""
    m, n = len(a), len(b)
    within = (_kernel_sum(a, a) - _diagonal(a)) / (m * (m - 1)) + (_kernel_sum(b, b) - _diagonal(b)) / (n * (n - 1))
    return within - 2 * _kernel_sum(a, b) / (m * n)


@METRICS.register("distribution/kd")
class KernelDistance(Metric):
    """Squared maximum mean discrepancy of generated and real training features, with a cubic kernel.

    Named `kid` with Inception, `kd_NAME` with others. Computed over all pairs of at most 10,000 features each instead
    of random subsets: the same expectation with less variance. Source: Binkowski et al. 2018, equation 4.
    """

    numbers = {"distribution/kd_NAME": "lower", "distribution/kid": "lower"}
    compares = (Stream.TRAIN, Stream.GENERATED)
    quick = False

    def compute(self) -> dict[str, float]:
        train, generated = (self.features.get(stream, 2).kept for stream in self.compares)
        name = "kid" if self.features.name == "inception" else f"kd_{self.features.name}"
        return {f"distribution/{name}": kernel_distance(train, generated)}
