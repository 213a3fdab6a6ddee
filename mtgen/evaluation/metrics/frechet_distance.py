"""How far the distribution of generated images is from that of real ones, by mean and covariance of their features."""

import torch
from torch import Tensor

from mtgen.evaluation.features import Features
from mtgen.evaluation.metric import METRICS, Metric


def frechet_distance(a: Features, b: Features) -> float:
    """|m_a - m_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a C_b)^(1/2)).

    With C = R R^T the last trace is the sum of the singular values of R_a^T R_b: a root is never taken of a number that rounding has made
    from nothing, which would add its square root, and nothing becomes complex.
    """
    roots = [_root(features.covariance) for features in (a, b)]
    shared = torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    apart = (a.mean - b.mean).square().sum()
    return max(0.0, float(apart + a.covariance.trace() + b.covariance.trace() - 2 * shared))


def _root(covariance: Tensor) -> Tensor:
    """`[D,D]` positive semidefinite C -> R with R R^T = C."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt()


@METRICS.register("distribution/fd")
class FrechetDistance(Metric):
    """Frechet distance of generated and real training features; called `fid` with Inception's and `fd_NAME` with any others.

    It takes more images than a feature has numbers, else the covariance says nothing of most directions. Source: Heusel et al. 2017.
    """

    numbers = {"distribution/fd_NAME": "lower", "distribution/fid": "lower"}
    quick = False
    compared = ("train", "generated")

    def compute(self) -> dict[str, float]:
        least = self.features.size() + 1
        distance = frechet_distance(self.features.get("train", least), self.features.get("generated", least))
        return {
            "distribution/fid"
            if self.features.name == "inception"
            else f"distribution/fd_{self.features.name}": distance
        }
