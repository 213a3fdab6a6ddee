"""The classification accuracy score and its classifier."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mtgen.evaluation.base import MetricContext, Skipped
from mtgen.evaluation.evaluate import evaluate
from mtgen.evaluation.metrics.cas import ClassificationAccuracyScore, RealClassificationAccuracyScore
from mtgen.evaluation.reference import classifier
from mtgen.evaluation.reference.classifier import Classifier, shrink_images
from mtgen.evaluation.reference.training import TrainingSpec
from mtgen.schema import Batch, Canvas, DatasetCard, Prediction

MakeBatch = Callable[..., Batch]
MakeCard = Callable[..., DatasetCard]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training of 40 steps, enough for toy images."""
    monkeypatch.setattr(classifier, "CLASSIFIER_TRAIN_IMAGES", 40 * classifier.CLASSIFIER_BATCH_SIZE)


def stripes(label: Tensor, seed: int = 0) -> Tensor:
    """Noisy 16x16 images of three classes: the top, the middle or the bottom is bright."""
    image = torch.randn(len(label), 1, 16, 16, generator=torch.Generator().manual_seed(seed)) * 0.1 - 0.8
    for row, number in enumerate(label.tolist()):
        image[row, :, 5 * number : 5 * number + 5] += 1.5
    return image


def score(metric: ClassificationAccuracyScore, trained_as: Tensor, shown: Tensor, batch: Batch) -> dict[str, float]:
    metric.update_generated(Canvas(stripes(shown)), trained_as, Prediction())
    metric.update_test(batch, Prediction())
    return metric.compute()


@pytest.fixture
def cas(make_card: MakeCard, short: None) -> ClassificationAccuracyScore:
    return ClassificationAccuracyScore(MetricContext(make_card(), samples=90, conditions=("class",)))


def test_samples_that_look_like_their_class_score_one(cas: ClassificationAccuracyScore, make_batch: MakeBatch) -> None:
    label = torch.arange(90) % 3
    assert score(cas, label, label, make_batch(stripes(label, 1), label)) == {"generated/cas": 1.0}


def test_samples_that_look_like_another_class_score_zero(
    cas: ClassificationAccuracyScore, make_batch: MakeBatch
) -> None:
    label = torch.arange(90) % 3
    assert score(cas, (label + 1) % 3, label, make_batch(stripes(label, 1), label)) == {"generated/cas": 0.0}


def test_test_images_without_a_class_are_not_counted(cas: ClassificationAccuracyScore, make_batch: MakeBatch) -> None:
    label = torch.arange(90) % 3
    unlabeled = label.where(label != 1, -1)
    assert score(cas, label, label, make_batch(stripes((label + (label == 1)) % 3, 1), unlabeled)) == {
        "generated/cas": 1.0
    }


def test_it_needs_ten_images_per_class(cas: ClassificationAccuracyScore, make_batch: MakeBatch) -> None:
    label = torch.arange(29) % 3
    with pytest.raises(Skipped, match="at least 30 images"):
        score(cas, label, label, make_batch(stripes(label), label))


def test_a_test_split_without_classes_is_a_reason(cas: ClassificationAccuracyScore, make_batch: MakeBatch) -> None:
    label = torch.arange(90) % 3
    with pytest.raises(Skipped, match="no test image has a class"):
        score(cas, label, label, make_batch(stripes(label)))


def test_a_single_class_is_a_reason(make_card: MakeCard) -> None:
    with pytest.raises(Skipped, match="single class"):
        ClassificationAccuracyScore(MetricContext(make_card(classes=1), samples=90, conditions=("class",)))


def test_the_reference_trains_on_as_many_real_images_as_are_generated(
    make_card: MakeCard, make_batch: MakeBatch
) -> None:
    reference = RealClassificationAccuracyScore(MetricContext(make_card(), samples=50, conditions=("class",)))
    label = torch.arange(200) % 3
    for rows in label.split(64):
        reference.update_train(make_batch(stripes(rows), rows))
    assert [len(part) for part in reference.kept.rows()] == [50, 50, 50]


def test_the_reference_chooses_from_the_whole_training_split(make_card: MakeCard, make_batch: MakeBatch) -> None:
    reference = RealClassificationAccuracyScore(MetricContext(make_card(), samples=30, conditions=("class",)))
    for number in range(3):  # sorted by class: the first 30 alone would all be of class 0
        label = torch.full((100,), number)
        reference.update_train(make_batch(stripes(label), label))
    assert set(reference.kept.rows()[2].tolist()) == {0, 1, 2}


def test_an_image_is_kept_with_its_own_class(make_card: MakeCard, make_batch: MakeBatch) -> None:
    reference = RealClassificationAccuracyScore(MetricContext(make_card(), samples=30, conditions=("class",)))
    label = torch.arange(300) % 3
    reference.update_train(make_batch(label[:, None, None, None].expand(-1, 1, 4, 4) - 1.0, label))
    _, image, label = reference.kept.rows()
    assert torch.equal((image[:, 0, 0, 0] / 127.5).round().long(), label)


def test_the_same_seed_trains_the_same_classifier(short: None) -> None:
    label = torch.arange(60) % 3
    first, second = (
        Classifier(shrink_images(stripes(label)), label, 3, TrainingSpec(seed=5)).network.state_dict() for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_training_leaves_the_global_random_numbers_alone(short: None) -> None:
    label = torch.arange(60) % 3
    state = torch.get_rng_state()
    Classifier(shrink_images(stripes(label)), label, 3, TrainingSpec(seed=5))
    assert torch.equal(torch.get_rng_state(), state)


def test_training_works_where_gradients_are_off(short: None) -> None:
    label = torch.arange(60) % 3
    with torch.no_grad():
        trained = Classifier(shrink_images(stripes(label)), label, 3, TrainingSpec(seed=5))
    assert torch.equal(trained.predict(shrink_images(stripes(label, 1))), label)


def test_augmentation_moves_images_without_flipping_or_emptying_them() -> None:
    image = stripes(torch.tensor([0] * 64))
    moved = classifier._augmented(image, torch.Generator().manual_seed(0))
    assert not torch.allclose(moved, image, atol=0.1)
    assert (moved[:, :, 1:4].mean((1, 2, 3)) > 0).all() and (moved[:, :, 9:].mean((1, 2, 3)) < -0.5).all()


@pytest.mark.parametrize(("side", "kept"), [(16, 16), (32, 32), (64, 32)])
def test_images_are_kept_with_32_pixels_a_side_at_most(side: int, kept: int) -> None:
    assert shrink_images(torch.zeros(2, 3, side, side)).shape == (2, 3, kept, kept)


def test_kept_images_are_bytes_over_the_range_of_a_picture() -> None:
    assert shrink_images(torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 1, 5)).flatten().tolist() == [
        0,
        0,
        128,
        255,
        255,
    ]


def test_a_classifier_trained_on_real_digits_recognizes_real_digits(
    digits: Callable[[str], tuple[Tensor, ...]], make_batch: MakeBatch, make_card: MakeCard, assemble: Any
) -> None:
    def batches(split: str) -> Iterator[Batch]:
        image, label, _ = digits(split)
        for rows in torch.arange(len(image)).split(250):
            yield make_batch(F.pad(image[rows], (2, 2, 2, 2), value=-1), label[rows])

    model = assemble(make_card(classes=10), draw=lambda labels, latent: Canvas(torch.zeros(len(labels), 1, 32, 32)))
    report = evaluate(model, batches("test"), batches("train"), samples=4000, seed=0, metrics=["real/cas"])
    assert report["real/cas"] >= 0.96
