"""Distances of distributions against scipy, scikit-learn and brute force, and the statistics of features."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.pairwise import polynomial_kernel
from torch import Tensor

from mtgen.evaluation.base import MetricContext, Skipped
from mtgen.evaluation.collectors import features
from mtgen.evaluation.collectors.features import FeatureSets, FeatureStatistics
from mtgen.evaluation.metric import METRICS, Metric
from mtgen.evaluation.metrics.frechet_distance import frechet_distance
from mtgen.evaluation.metrics.kernel_distance import kernel_distance
from mtgen.evaluation.metrics.precision_recall import precision_recall
from mtgen.schema import DatasetCard


def rows(seed: int, n: int, size: int, shift: float = 0.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    mixed = torch.randn(n, size, generator=g) @ torch.randn(size, size, generator=g)
    return mixed + shift


def collected(part: Tensor) -> FeatureStatistics:
    made = FeatureStatistics(part.shape[1])
    made.update(part, torch.arange(len(part)))
    return made


def metric(name: str, **streams: Tensor) -> Metric:
    made = METRICS[name](MetricContext(DatasetCard(name="test", splits={}), samples=100))
    made.features = FeatureSets("net")
    for kind, part in streams.items():
        made.features.update(kind, part, torch.arange(len(part)))
    return made


@given(st.integers(0, 10_000), st.integers(2, 12))
def test_frechet_distance_is_the_one_with_scipys_matrix_root(seed: int, size: int) -> None:
    a, b = rows(seed, 40, size), rows(seed + 1, 50, size, 0.5)
    ca, cb = (np.cov(part.double().numpy(), rowvar=False) for part in (a, b))
    root = scipy.linalg.sqrtm(ca @ cb).real
    expected = float((a.double().mean(0) - b.double().mean(0)).square().sum()) + np.trace(ca + cb - 2 * root)
    assert frechet_distance(collected(a), collected(b)) == pytest.approx(expected, rel=1e-6)


def test_equal_sets_have_no_frechet_distance_even_where_their_covariance_is_singular() -> None:
    flat = torch.cat([rows(0, 200, 8), torch.zeros(200, 8)], 1)
    assert frechet_distance(collected(flat), collected(flat)) < 1e-9


@given(st.integers(0, 10_000), st.integers(2, 30), st.integers(2, 30))
def test_kernel_distance_is_the_unbiased_one_with_scikit_learns_kernel(seed: int, m: int, n: int) -> None:
    a, b = rows(seed, m, 5).double(), rows(seed + 1, n, 5, 0.3).double()
    aa, bb, ab = (polynomial_kernel(x, y, degree=3, coef0=1) for x, y in ((a, a), (b, b), (a, b)))
    expected = (aa.sum() - np.trace(aa)) / (m * (m - 1)) + (bb.sum() - np.trace(bb)) / (n * (n - 1)) - 2 * ab.mean()
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def brute_force(real: Tensor, generated: Tensor, k: int) -> dict[str, float]:
    def apart(a: Tensor, b: Tensor) -> float:
        return float((a - b).square().sum().sqrt())

    def reach(among: Tensor) -> list[float]:
        return [sorted(apart(a, b) for j, b in enumerate(among) if j != i)[k - 1] for i, a in enumerate(among)]

    real_reach, generated_reach = reach(real), reach(generated)
    near_real = [[apart(r, g) <= d for r, d in zip(real, real_reach, strict=True)] for g in generated]
    near_generated = [[apart(r, g) <= d for g, d in zip(generated, generated_reach, strict=True)] for r in real]
    return {
        "precision": float(np.mean([any(row) for row in near_real])),
        "recall": float(np.mean([any(row) for row in near_generated])),
        "density": float(np.sum(near_real)) / k / len(generated),
        "coverage": float(np.mean(np.any(near_real, axis=0))),
    }


@given(st.integers(0, 10_000), st.integers(4, 14), st.integers(4, 14))
def test_precision_recall_density_and_coverage_are_the_brute_force_ones(seed: int, n: int, m: int) -> None:
    real, generated = rows(seed, n, 3).double(), rows(seed + 1, m, 3).double()
    assert precision_recall(real, generated, 3) == pytest.approx(brute_force(real, generated, 3))


def test_sets_that_have_nothing_in_common_share_nothing() -> None:
    assert set(precision_recall(rows(0, 20, 4), rows(1, 20, 4, 1000)).values()) == {0.0}


def test_equal_sets_cover_each_other() -> None:
    found = precision_recall(rows(0, 30, 4), rows(0, 30, 4))
    assert [found[name] for name in ("precision", "recall", "coverage")] == [1, 1, 1]


def test_copies_of_training_images_are_memorised_and_new_ones_are_not() -> None:
    train, test, new = rows(0, 300, 4), torch.randn(200, 4), torch.randn(200, 4)
    train = torch.randn(300, 4)
    copies = metric("distribution/memorisation", train=train, generated=train[:50] + 1e-6, test=test)
    assert copies.compute() == {
        "distribution/memorisation_net": pytest.approx(0, abs=1e-3),
        "distribution/memorised_net": 1.0,
    }
    assert {a for a, b, _ in copies.features.closest} == {
        b for a, b, _ in copies.features.closest
    }  # image n is a copy of image n
    fresh = metric("distribution/memorisation", train=train, generated=new, test=test).compute()
    assert fresh["distribution/memorisation_net"] == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(("name", "needed"), [("fd", 5), ("kd", 2), ("prdc", 6), ("memorisation", 10)])
def test_too_few_images_are_named_with_the_needed_number(name: str, needed: int) -> None:
    few = metric(f"distribution/{name}", train=rows(0, 20, 4), generated=rows(1, needed - 1, 4), test=rows(2, 20, 4))
    with pytest.raises(Skipped, match=f"at least {needed} generated images are needed; there are {needed - 1}"):
        few.compute()
    with pytest.raises(Skipped):
        metric(f"distribution/{name}").compute()


@pytest.mark.parametrize("name", ["fd", "kd"])
def test_only_inceptions_numbers_have_the_published_names(name: str) -> None:
    made = metric(f"distribution/{name}", train=rows(0, 20, 4), generated=rows(1, 20, 4))
    assert list(made.compute()) == [f"distribution/{name}_net"]
    made.features.name = "inception"
    assert list(made.compute()) == [{"fd": "distribution/fid", "kd": "distribution/kid"}[name]]


@given(st.integers(0, 10_000), st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_a_stream_in_any_parts_and_order_keeps_the_same(seed: int, sizes: list[int]) -> None:
    part, keep = rows(seed, sum(sizes), 3, 100.0), 7
    positions = list(torch.randperm(len(part), generator=torch.Generator().manual_seed(seed)).split(sizes))
    most, features.MAX_ROWS_KEPT = features.MAX_ROWS_KEPT, keep
    try:
        whole, stream = collected(part), FeatureStatistics(3)
        for position in positions:
            stream.update(part[position], position)
        assert torch.equal(stream.kept, whole.kept) and torch.equal(stream.position, whole.position)
        assert len(whole.kept) == min(keep, len(part))
    finally:
        features.MAX_ROWS_KEPT = most
    assert torch.allclose(stream.mean, part.double().mean(0))
    if len(part) > 1:
        assert torch.allclose(stream.covariance, torch.cov(part.double().T), rtol=1e-6, atol=1e-6)
