"""Structural similarity and feature distance of reconstructions, against scipy and brute force."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor

from mtgen.evaluation.base import MetricContext, Skipped
from mtgen.evaluation.collectors.features import FeatureSets
from mtgen.evaluation.metric import METRICS, Metric
from mtgen.evaluation.metrics.reconstruction_ssim import ssim
from mtgen.schema import Batch, Canvas, DatasetCard

MakeBatch = Callable[..., Batch]


def metric(name: str) -> Metric:
    made = METRICS[name](MetricContext(DatasetCard(name="test", splits={}), samples=100))
    made.features = FeatureSets("net")
    return made


def pictures(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def by_scipy(a: Tensor, b: Tensor) -> float:
    """Wang et al. 2004 over one channel, with scipy's Gaussian of the same reach, away from the edges."""
    x, y = a.double().numpy(), b.double().numpy()

    def mean(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, truncate=5 / 1.5)[5:-5, 5:-5]

    mx, my = mean(x), mean(y)
    vx, vy, shared = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    return float(((2 * mx * my + 1e-4) * (2 * shared + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))).mean())


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_structural_similarity_is_that_of_scipys_windows(seed: int, noise: float) -> None:
    a = pictures(seed, 2, 3, 14, 17)
    b = (a + noise * (pictures(seed + 1, 2, 3, 14, 17) - 0.5)).clamp(0, 1)
    expected = [
        np.mean([by_scipy(x, y) for x, y in zip(left, right, strict=True)]) for left, right in zip(a, b, strict=True)
    ]
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("side", [1, 4, 8, 32])
def test_an_image_is_like_itself_and_unlike_its_negative(side: int) -> None:
    image = pictures(0, 1, 1, side, side)
    assert ssim(image, image).item() == pytest.approx(1)
    assert side == 1 or ssim(image, 1 - image).item() < 0.2


def test_similarity_is_averaged_over_images_in_the_range_of_a_picture(make_batch: MakeBatch) -> None:
    real, rebuilt = pictures(0, 5, 1, 12, 12) * 2 - 1, pictures(1, 5, 1, 12, 12) * 3 - 1.5
    measured = metric("test/reconstruction_ssim")
    for rows in (slice(0, 3), slice(3, 5)):
        measured.update_reconstruction(make_batch(real[rows]), Canvas(rebuilt[rows]))
    expected = ssim((real + 1) / 2, (rebuilt.clamp(-1, 1) + 1) / 2).mean().item()
    assert measured.compute() == {"test/reconstruction_ssim": pytest.approx(expected)}


@given(st.integers(0, 10_000), st.integers(2, 12))
def test_feature_distance_is_in_proportion_to_that_of_two_different_images(seed: int, n: int) -> None:
    seen, rebuilt = pictures(seed, n, 4).double(), pictures(seed + 1, n, 4).double()
    measured = metric("test/reconstruction_features")
    for rows in torch.arange(n).split(5):
        measured.update_reconstruction_features(seen[rows], rebuilt[rows])
        measured.features.update("test", seen[rows], rows)
    pairs = [float((a - b).square().sum()) for i, a in enumerate(seen) for j, b in enumerate(seen) if i != j]
    expected = float((seen - rebuilt).square().sum(1).mean()) / np.mean(pairs)
    assert measured.compute() == {"test/reconstruction_features_net": pytest.approx(expected)}


def test_without_reconstructions_or_with_too_few_images_there_is_a_reason(make_batch: MakeBatch) -> None:
    with pytest.raises(Skipped, match="does not reconstruct"):
        metric("test/reconstruction_ssim").update_reconstruction(make_batch(torch.zeros(1, 1, 8, 8)), None)
    measured = metric("test/reconstruction_features")
    measured.features.update("test", torch.rand(1, 4), torch.arange(1))
    with pytest.raises(Skipped, match="at least 2 real test images are needed; there are 1"):
        measured.compute()
    measured.features.update("test", torch.rand(3, 4), torch.arange(1, 4))
    with pytest.raises(Skipped, match="does not reconstruct"):
        measured.compute()
