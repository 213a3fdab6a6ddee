"""Diversity within a class, against numpy."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtgen.evaluation.base import MetricContext, Skipped
from mtgen.evaluation.collectors.class_moments import ClassMoments
from mtgen.evaluation.metrics.diversity import Diversity
from mtgen.evaluation.metrics.spread import Spread
from mtgen.schema import Batch, Canvas, DatasetCard, Prediction

MakeBatch = Callable[..., Batch]
MakeCard = Callable[..., DatasetCard]


def images(n: int, seed: int, spread: float = 1.0) -> Tensor:
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) * spread


def classes(n: int) -> Tensor:
    return torch.arange(n) % 3


@given(
    st.integers(0, 10_000),
    st.lists(st.integers(1, 8), min_size=1, max_size=5),
    st.floats(1e-3, 10),
    st.floats(-100, 100),
)
def test_streamed_deviation_is_numpys_over_all_images(
    seed: int, sizes: list[int], spread: float, offset: float
) -> None:
    image, label = images(sum(sizes), seed, spread) + offset, classes(sum(sizes))
    moments = ClassMoments(3)
    for part, number in zip(image.split(sizes), label.split(sizes), strict=True):
        moments.update(part, number)
    deviation = moments.deviation()
    for k in label.unique():
        expected = np.sqrt(image[label == k].double().numpy().var(axis=0).mean())
        assert deviation[k].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.fixture
def diversity(make_card: MakeCard) -> Diversity:
    return Diversity(MetricContext(make_card(), samples=90, conditions=("class",)))


def test_samples_that_are_real_images_have_diversity_one(diversity: Diversity, make_batch: MakeBatch) -> None:
    image, label = images(90, 0), classes(90)
    diversity.update_train(make_batch(image, label))
    diversity.update_generated(Canvas(image), label, Prediction())
    assert diversity.compute() == {
        "generated/diversity": pytest.approx(1),
        "generated/diversity_worst": pytest.approx(1),
    }


def test_a_collapsed_generator_has_no_diversity(diversity: Diversity, make_batch: MakeBatch) -> None:
    label = classes(90)
    diversity.update_train(make_batch(images(90, 0), label))
    diversity.update_generated(Canvas(images(3, 1)[label]), label, Prediction())
    assert diversity.compute()["generated/diversity"] == pytest.approx(0, abs=1e-6)


def test_the_worst_class_is_reported_beside_the_mean(diversity: Diversity, make_batch: MakeBatch) -> None:
    image, label = images(90, 0), classes(90)
    share = torch.tensor([1.0, 0.75, 0.2])[label][:, None, None, None]
    diversity.update_train(make_batch(image, label))
    diversity.update_generated(Canvas(image * share), label, Prediction())
    assert diversity.compute() == {
        "generated/diversity": pytest.approx(0.65),
        "generated/diversity_worst": pytest.approx(0.2),
    }


def test_differences_between_classes_are_no_diversity(diversity: Diversity, make_batch: MakeBatch) -> None:
    label = classes(90)
    apart = 100.0 * label[:, None, None, None]
    diversity.update_train(make_batch(images(90, 0), label))
    diversity.update_generated(Canvas(images(90, 0, 0.5) + apart), label, Prediction())
    assert diversity.compute()["generated/diversity"] == pytest.approx(0.5, rel=1e-4)


def test_the_training_split_is_what_samples_are_compared_with(diversity: Diversity, make_batch: MakeBatch) -> None:
    image, label = images(90, 0), classes(90)
    diversity.update_train(make_batch(image, label))
    diversity.update_generated(Canvas(image), label, Prediction())
    diversity.update_test(make_batch(image * 2, label), Prediction())
    assert diversity.compute()["generated/diversity"] == pytest.approx(1)


def test_the_test_split_takes_the_place_of_a_training_split_that_is_not_given(
    diversity: Diversity, make_batch: MakeBatch
) -> None:
    image, label = images(90, 0), classes(90)
    diversity.update_generated(Canvas(image), label, Prediction())
    diversity.update_test(make_batch(image * 2, label), Prediction())
    assert diversity.compute()["generated/diversity"] == pytest.approx(0.5)


def test_images_without_a_class_do_not_count(diversity: Diversity, make_batch: MakeBatch) -> None:
    image, label = images(90, 0), classes(90)
    diversity.update_train(make_batch(torch.cat([image, 50 * images(9, 1)]), torch.cat([label, torch.full((9,), -1)])))
    diversity.update_generated(Canvas(image), label, Prediction())
    assert diversity.compute()["generated/diversity"] == pytest.approx(1)


def test_classes_with_too_few_images_do_not_count(diversity: Diversity, make_batch: MakeBatch) -> None:
    image, label = images(90, 0), classes(90)
    label[:9], few = 2, torch.cat([torch.full((9,), 0), torch.full((81,), 1)])
    diversity.update_train(make_batch(image, label))
    diversity.update_generated(Canvas(image * 0.5), few, Prediction())
    spread = (image[few == 1] * 0.5).double().numpy().var(0).mean() / image[label == 1].double().numpy().var(0).mean()
    only_one = pytest.approx(float(np.sqrt(spread)))
    assert diversity.compute() == {"generated/diversity": only_one, "generated/diversity_worst": only_one}


def test_without_a_class_that_has_enough_images_it_is_skipped(diversity: Diversity, make_batch: MakeBatch) -> None:
    diversity.update_train(make_batch(images(9, 0), classes(9)))
    diversity.update_generated(Canvas(images(9, 1)), classes(9), Prediction())
    with pytest.raises(Skipped, match="no class has 10"):
        diversity.compute()


def test_without_any_image_it_is_skipped(diversity: Diversity) -> None:
    with pytest.raises(Skipped, match="no class has 10"):
        diversity.compute()


def spread_of(real: Tensor, generated: Tensor, make_batch: MakeBatch) -> float:
    """Of data without classes."""
    metric = Spread(MetricContext(DatasetCard(name="photographs", splits={}), samples=len(generated)))
    no_class = torch.full((len(real),), -1)
    for part in real.split(40):
        metric.update_train(make_batch(part, no_class[: len(part)]))
    metric.update_generated(Canvas(generated), torch.full((len(generated),), -1), Prediction())
    return metric.compute()["generated/spread"]


def test_without_classes_the_spread_of_all_images_is_compared_with_numpys(make_batch: MakeBatch) -> None:
    real, generated = images(90, 0), images(50, 1, 0.4)
    expected = np.sqrt(generated.double().numpy().var(0).mean() / real.double().numpy().var(0).mean())
    assert spread_of(real, generated, make_batch) == pytest.approx(expected, rel=1e-6)
    assert spread_of(real, real[:1].expand(50, -1, -1, -1), make_batch) == pytest.approx(0, abs=1e-6)


def test_without_images_that_differ_there_is_no_spread(make_batch: MakeBatch) -> None:
    for real in (images(9, 0), images(1, 0).expand(90, -1, -1, -1)):
        with pytest.raises(Skipped, match="fewer than 10 real images that differ"):
            spread_of(real, images(50, 1), make_batch)
