"""Frechet distance of the distributions of generated and real images, by the mean and covariance of their features."""

import torch
from torch import Tensor

from mtgen.evaluation.base import Stream
from mtgen.evaluation.collectors.features import FeatureStatistics
from mtgen.evaluation.metric import METRICS, Metric


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|m_a - m_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a C_b)^(1/2)).

    With C = R R^T the last trace is the sum of the singular values of R_a^T R_b. This avoids the square root of values
    that are zero up to rounding, which would amplify the rounding errors, and complex numbers.
    """
    roots = [_root(features.covariance) for features in (a, b)]
    shared = torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    means = (a.mean - b.mean).square().sum()
    return max(0.0, float(means + a.covariance.trace() + b.covariance.trace() - 2 * shared))


def _root(covariance: Tensor) -> Tensor:
    """`[D,D]` positive semidefinite C -> R with R R^T = C."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt()


@METRICS.register("distribution/fd")
class FrechetDistance(Metric):
    """Frechet distance of generated and real training features; named `fid` with Inception, `fd_NAME` with others.

    It needs more images than a feature has dimensions, else the covariance is singular. Source: Heusel et al. 2017.
    """

    numbers = {"distribution/fd_NAME": "lower", "distribution/fid": "lower"}
    compares = (Stream.TRAIN, Stream.GENERATED)
    quick = False

    def compute(self) -> dict[str, float]:
        train, generated = (self.features.get(stream, self.features.size() + 1) for stream in self.compares)
        name = "fid" if self.features.name == "inception" else f"fd_{self.features.name}"
        return {f"distribution/{name}": frechet_distance(train, generated)}
