"""Class accuracy, mask IoU and agreement against scikit-learn."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, jaccard_score
from torch import Tensor
from torch.nn import functional as F

from mtgen.evaluation.base import MetricContext, Skipped
from mtgen.evaluation.metric import METRICS, Metric
from mtgen.schema import IGNORE_INDEX, Batch, Canvas, DatasetCard, Prediction

MakeBatch = Callable[..., Batch]
MakeCard = Callable[..., DatasetCard]


def metric(name: str, card: DatasetCard) -> Metric:
    return METRICS[name](MetricContext(card, samples=100, conditions=("class",)))


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def class_logits(labels: Tensor, classes: int = 3) -> Prediction:
    return Prediction(class_logits=F.one_hot(labels, classes).float())


def mask_logits(masks: Tensor, classes: int = 3) -> Prediction:
    return Prediction(mask_logits=F.one_hot(masks, classes).movedim(-1, 1).float())


def images(n: int) -> Tensor:
    return torch.zeros(n, 1, 4, 4)


@given(st.integers(0, 10_000), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_class_accuracy_is_scikit_learns_over_the_labeled_samples(
    make_card: MakeCard, make_batch: MakeBatch, seed: int, sizes: list[int]
) -> None:
    accuracy, g = metric("test/class_accuracy", make_card()), random(seed)
    true, read = (torch.randint(low, 3, (sum(sizes),), generator=g) for low in (-1, 0))
    for label, guess in zip(true.split(sizes), read.split(sizes), strict=True):
        accuracy.update_test(make_batch(images(len(label)), label), class_logits(guess))
    known = true >= 0
    if known.any():
        assert accuracy.compute() == {"test/class_accuracy": pytest.approx(accuracy_score(true[known], read[known]))}
    else:
        with pytest.raises(Skipped, match="no test image has a class"):
            accuracy.compute()


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (1, 0.0)])
def test_class_accuracy_of_all_right_and_all_wrong(
    make_card: MakeCard, make_batch: MakeBatch, shift: int, expected: float
) -> None:
    accuracy, label = metric("test/class_accuracy", make_card()), torch.arange(9) % 3
    accuracy.update_test(make_batch(images(9), label), class_logits((label + shift) % 3))
    assert accuracy.compute() == {"test/class_accuracy": expected}


@given(st.integers(0, 10_000), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(2, 5))
def test_mask_miou_is_scikit_learns_over_all_known_pixels_of_the_split(
    make_card: MakeCard, make_batch: MakeBatch, seed: int, sizes: list[int], classes: int
) -> None:
    miou, g = metric("test/mask_miou", make_card(mask_classes=classes)), random(seed)
    true = torch.randint(0, classes, (sum(sizes), 4, 4), generator=g)
    true[torch.rand(true.shape, generator=g) < 0.2] = IGNORE_INDEX
    read = torch.randint(0, classes, true.shape, generator=g)
    has_mask = torch.rand(len(true), generator=g) < 0.7
    has_mask[0] = True
    true[0, 0, 0] = 0  # at least one known pixel
    for mask, guess, has in zip(true.split(sizes), read.split(sizes), has_mask.split(sizes), strict=True):
        miou.update_test(make_batch(images(len(mask)), mask=mask, has_mask=has), mask_logits(guess, classes))
    known = (true != IGNORE_INDEX) & has_mask[:, None, None]
    expected = jaccard_score(true[known], read[known], average="macro")
    assert miou.compute() == {"test/mask_miou": pytest.approx(expected)}


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (1, 0.0)])
def test_mask_miou_of_all_right_and_all_wrong(
    make_card: MakeCard, make_batch: MakeBatch, shift: int, expected: float
) -> None:
    miou, mask = metric("test/mask_miou", make_card()), torch.arange(32).reshape(2, 4, 4) % 3
    miou.update_test(make_batch(images(2), mask=mask), mask_logits((mask + shift) % 3))
    assert miou.compute() == {"test/mask_miou": expected}


def test_mask_classes_that_do_not_occur_do_not_count(make_card: MakeCard, make_batch: MakeBatch) -> None:
    miou, mask = metric("test/mask_miou", make_card(mask_classes=3)), torch.ones(1, 4, 4, dtype=torch.int64)
    miou.update_test(make_batch(images(1), mask=mask), mask_logits(mask))
    assert miou.compute() == {"test/mask_miou": 1.0}


def test_ignored_pixels_may_be_predicted_as_anything(make_card: MakeCard, make_batch: MakeBatch) -> None:
    miou = metric("test/mask_miou", make_card())
    true = torch.zeros(1, 4, 4, dtype=torch.int64)
    true[:, :2], read = IGNORE_INDEX, torch.zeros(1, 4, 4, dtype=torch.int64)
    read[:, :2] = 2
    miou.update_test(make_batch(images(1), mask=true), mask_logits(read))
    assert miou.compute() == {"test/mask_miou": 1.0}


def test_without_a_known_pixel_there_is_no_mask_miou(make_card: MakeCard, make_batch: MakeBatch) -> None:
    miou = metric("test/mask_miou", make_card())
    miou.update_test(make_batch(images(2)), mask_logits(torch.zeros(2, 4, 4, dtype=torch.int64)))
    with pytest.raises(Skipped, match="no pixel"):
        miou.compute()


def test_class_agreement_counts_the_classes_conditioned_on(make_card: MakeCard) -> None:
    agreement = metric("generated/class_agreement", make_card())
    agreement.update_generated(Canvas(images(3)), torch.tensor([0, 1, 2]), class_logits(torch.tensor([0, 1, 1])))
    agreement.update_generated(Canvas(images(1)), torch.tensor([2]), class_logits(torch.tensor([2])))
    assert agreement.compute() == {"generated/class_agreement": 0.75}


def test_mask_agreement_is_the_iou_of_generated_and_predicted_masks(make_card: MakeCard) -> None:
    agreement, g = metric("generated/mask_agreement", make_card()), random(0)
    drawn, read = torch.randint(0, 3, (2, 6, 4, 4), generator=g)
    for part in range(3):
        rows = slice(2 * part, 2 * part + 2)
        probabilities = mask_logits(drawn[rows]).mask_logits
        agreement.update_generated(
            Canvas(images(2), probabilities), torch.zeros(2, dtype=torch.int64), mask_logits(read[rows])
        )
    expected = jaccard_score(drawn.flatten(), read.flatten(), average="macro")
    assert agreement.compute() == {"generated/mask_agreement": pytest.approx(expected)}


def test_mask_agreement_needs_generated_masks(make_card: MakeCard) -> None:
    agreement = metric("generated/mask_agreement", make_card())
    with pytest.raises(Skipped, match="does not generate masks"):
        agreement.update_generated(
            Canvas(images(1)), torch.tensor([0]), mask_logits(torch.zeros(1, 4, 4, dtype=torch.int64))
        )


@given(st.integers(0, 10_000))
def test_psnr_is_the_mean_over_images_of_its_formula(make_card: MakeCard, make_batch: MakeBatch, seed: int) -> None:
    psnr, g = metric("test/reconstruction_psnr", make_card()), random(seed)
    real, rebuilt = torch.rand(2, 5, 1, 4, 4, generator=g).mul(2).sub(1)
    for rows in (slice(0, 3), slice(3, 5)):
        psnr.update_reconstruction(make_batch(real[rows]), Canvas(rebuilt[rows]))
    expected = sum(10 * math.log10(4 / (a - b).square().mean().item()) for a, b in zip(real, rebuilt, strict=True)) / 5
    assert psnr.compute() == {"test/reconstruction_psnr": pytest.approx(expected, rel=1e-5)}


def test_psnr_of_a_perfect_reconstruction_is_the_ceiling(make_card: MakeCard, make_batch: MakeBatch) -> None:
    psnr, real = metric("test/reconstruction_psnr", make_card()), torch.rand(2, 1, 4, 4)
    psnr.update_reconstruction(make_batch(real), Canvas(real))
    assert psnr.compute() == {"test/reconstruction_psnr": 100.0}


def test_psnr_sees_reconstructions_in_the_range_of_a_picture(make_card: MakeCard, make_batch: MakeBatch) -> None:
    psnr, white = metric("test/reconstruction_psnr", make_card()), torch.ones(1, 1, 4, 4)
    psnr.update_reconstruction(make_batch(white), Canvas(1.5 * white))
    assert psnr.compute() == {"test/reconstruction_psnr": 100.0}


def test_psnr_without_reconstructions_is_skipped(make_card: MakeCard, make_batch: MakeBatch) -> None:
    with pytest.raises(Skipped, match="does not reconstruct"):
        metric("test/reconstruction_psnr", make_card()).update_reconstruction(make_batch(images(1)), None)


@pytest.mark.parametrize(
    "name", ["test/class_accuracy", "generated/class_agreement", "generated/diversity", "generated/cas", "real/cas"]
)
def test_metrics_of_classes_need_classes(make_card: MakeCard, name: str) -> None:
    with pytest.raises(Skipped, match="names no classes"):
        metric(name, make_card(classes=0))


@pytest.mark.parametrize("name", ["test/mask_miou", "generated/mask_agreement"])
def test_metrics_of_masks_need_mask_classes(make_card: MakeCard, name: str) -> None:
    with pytest.raises(Skipped, match="names no mask classes"):
        metric(name, make_card(mask_classes=0))


@pytest.mark.parametrize(("name", "what"), [("test/class_accuracy", "classes"), ("test/mask_miou", "masks")])
def test_metrics_of_a_prediction_need_that_prediction(
    make_card: MakeCard, make_batch: MakeBatch, name: str, what: str
) -> None:
    with pytest.raises(Skipped, match=f"does not predict {what}"):
        metric(name, make_card()).update_test(make_batch(images(1)), Prediction())
