"""How far the distribution of generated images is from that of real ones, by a kernel over their features."""

from torch import Tensor

from mtgen.evaluation.distances import CHUNK_ROWS
from mtgen.evaluation.metric import METRICS, Metric


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    """Sum of (a b / D + 1)^3 over all pairs of rows of `[A,D]`, `[B,D]`."""
    other = b.double().T / a.shape[1]
    return sum(float((rows.double() @ other).add_(1).pow_(3).sum()) for rows in a.split(CHUNK_ROWS))


def _diagonal(a: Tensor) -> float:
    return float((a.double().square().sum(1) / a.shape[1] + 1).pow(3).sum())


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy of `[A,D]` and `[B,D]`; about 0, and possibly below, for equal sets."""
    m, n = len(a), len(b)
    within = (_kernel_sum(a, a) - _diagonal(a)) / (m * (m - 1)) + (_kernel_sum(b, b) - _diagonal(b)) / (n * (n - 1))
    return within - 2 * _kernel_sum(a, b) / (m * n)


@METRICS.register("distribution/kd")
class KernelDistance(Metric):
    """Squared maximum mean discrepancy of generated and real training features, cubic kernel; `kid` with Inception's, else `kd_NAME`.

    Over all pairs of the features that are kept (10,000 of each at most) and not over random subsets: the same expectation, less noise.
    Source: Binkowski et al. 2018, equation 4.
    """

    numbers = {"distribution/kd_NAME": "lower", "distribution/kid": "lower"}
    quick = False
    compared = ("train", "generated")

    def compute(self) -> dict[str, float]:
        distance = kernel_distance(self.features.get("train", 2).kept, self.features.get("generated", 2).kept)
        return {
            "distribution/kid"
            if self.features.name == "inception"
            else f"distribution/kd_{self.features.name}": distance
        }
