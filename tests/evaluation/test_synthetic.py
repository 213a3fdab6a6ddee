"""Metrics that train a segmenter or a detector on generated images alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mtgen.evaluation.base import MetricContext, Skipped
from mtgen.evaluation.evaluate import evaluate
from mtgen.evaluation.metric import METRICS, Metric
from mtgen.evaluation.reference import classifier, detector, segmenter
from mtgen.evaluation.reference.detector import Detector
from mtgen.evaluation.reference.training import TrainingSpec
from mtgen.networks.center_maps import encode
from mtgen.schema import IGNORE_INDEX, Batch, Canvas, DatasetCard, Prediction
from mtgen.visualization.grids import to_uint8

MakeBatch = Callable[..., Batch]
MakeCard = Callable[..., DatasetCard]
SIDE = 16


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "CLASSIFIER_TRAIN_IMAGES", 40 * classifier.CLASSIFIER_BATCH_SIZE)
    monkeypatch.setattr(segmenter, "SEGMENTER_TRAIN_IMAGES", 80 * segmenter.SEGMENTER_BATCH_SIZE)
    monkeypatch.setattr(detector, "DETECTOR_TRAIN_IMAGES", 200 * detector.DETECTOR_BATCH_SIZE)


def boxes_of(n: int) -> Tensor:
    """`[n,1,5]`: squares of 6 pixels at varying positions, of alternating classes, 0: dark, 1: bright."""
    corner = torch.stack([torch.arange(n) * 2 % 10, torch.arange(n) * 3 % 10], 1)
    return torch.cat([corner / SIDE, (corner + 6) / SIDE, torch.arange(n)[:, None] % 2], 1)[:, None].float()


def masks_of(boxes: Tensor) -> Tensor:
    """`[n,16,16]`: 0, and 1 plus the class where the box is."""
    x0, y0, x1, y1 = ((boxes[:, 0, k] * SIDE).round().long()[:, None, None] for k in range(4))
    across, down = torch.arange(SIDE)[None, None], torch.arange(SIDE)[None, :, None]
    return ((across >= x0) & (across < x1) & (down >= y0) & (down < y1)) * (1 + boxes[:, 0, 4].long()[:, None, None])


def images_of(boxes: Tensor) -> Tensor:
    return torch.tensor([0.0, -0.9, 0.9])[masks_of(boxes)][:, None]


def canvas_of(boxes: Tensor, drawn: Tensor | None = None) -> Canvas:
    drawn = boxes if drawn is None else drawn
    mask = F.one_hot(masks_of(drawn), 3).movedim(-1, 1).float()
    return Canvas(images_of(boxes), mask, boxes=encode(drawn, 2, (SIDE // 2, SIDE // 2)).canvas())


def real(make_batch: MakeBatch, n: int = 40) -> Batch:
    boxes = boxes_of(n)
    batch = make_batch(images_of(boxes), boxes[:, 0, 4].long(), masks_of(boxes))
    batch.boxes, batch.present["boxes"] = boxes, torch.ones(n, dtype=torch.bool)
    return batch


@pytest.fixture
def made(make_card: MakeCard) -> Callable[[str], Metric]:
    return lambda name: METRICS[name](MetricContext(make_card(2, 3), samples=200, conditions=("class",)))


def score(metric: Metric, canvas: Canvas, batch: Batch) -> dict[str, float]:
    metric.update_generated(canvas, torch.zeros(len(canvas.image), dtype=torch.int64), Prediction())
    metric.update_test(batch, Prediction())
    return metric.compute()


def test_masks_that_fit_their_images_teach_to_segment_real_ones(
    made: Callable[[str], Metric], make_batch: MakeBatch
) -> None:
    assert (
        score(made("generated/synthetic_miou"), canvas_of(boxes_of(200)), real(make_batch))["generated/synthetic_miou"]
        > 0.9
    )


def test_masks_of_other_images_teach_nothing(made: Callable[[str], Metric], make_batch: MakeBatch) -> None:
    other = canvas_of(boxes_of(200), boxes_of(200)[torch.randperm(200, generator=torch.Generator().manual_seed(0))])
    assert score(made("generated/synthetic_miou"), other, real(make_batch))["generated/synthetic_miou"] < 0.6


def test_boxes_that_fit_their_images_teach_to_detect_real_ones(
    made: Callable[[str], Metric], make_batch: MakeBatch
) -> None:
    found = score(made("generated/synthetic_ap50"), canvas_of(boxes_of(200)), real(make_batch))
    assert set(found) == {"generated/synthetic_ap50", "generated/synthetic_ap"}
    assert (
        found["generated/synthetic_ap50"] > 0.9
        and 0.3 < found["generated/synthetic_ap"] <= found["generated/synthetic_ap50"]
    )


def test_boxes_of_the_other_class_find_nothing(made: Callable[[str], Metric], make_batch: MakeBatch) -> None:
    wrong = boxes_of(200)
    wrong[..., 4] = 1 - wrong[..., 4]
    assert (
        score(made("generated/synthetic_ap50"), canvas_of(boxes_of(200), wrong), real(make_batch))[
            "generated/synthetic_ap50"
        ]
        < 0.1
    )


def test_real_images_in_place_of_generated_ones_teach_the_same(
    made: Callable[[str], Metric], make_batch: MakeBatch, assemble: Any, make_card: MakeCard
) -> None:
    model, batch = assemble(make_card(2, 3), None), real(make_batch, 200)
    report = evaluate(model, [real(make_batch)], [batch], samples=200, seed=0, metrics=["real/miou", "real/ap50"])
    assert report["real/miou"] > 0.9 and report["real/ap50"] > 0.9


def test_metrics_of_generated_labels_need_generated_labels(made: Callable[[str], Metric]) -> None:
    only = Canvas(torch.zeros(4, 1, SIDE, SIDE))
    for name, what in (("synthetic_miou", "masks"), ("synthetic_ap50", "boxes")):
        with pytest.raises(Skipped, match=f"does not generate {what}"):
            made(f"generated/{name}").update_generated(only, torch.zeros(4), Prediction())


def test_a_generator_without_boxes_is_a_reason(made: Callable[[str], Metric], make_batch: MakeBatch) -> None:
    nothing = boxes_of(40)
    nothing[..., 4] = -1
    with pytest.raises(Skipped, match="have no boxes"):
        score(made("generated/synthetic_ap50"), canvas_of(boxes_of(40), nothing), real(make_batch))


@pytest.mark.parametrize(("name", "needed"), [("generated/synthetic_miou", 30), ("generated/synthetic_ap50", 20)])
def test_too_few_images_are_named_with_the_needed_number(
    made: Callable[[str], Metric], make_batch: MakeBatch, name: str, needed: int
) -> None:
    reason = f"at least {needed} images to train on are needed, 10 per class; there are {needed - 1}"
    with pytest.raises(Skipped, match=reason):
        score(made(name), canvas_of(boxes_of(needed - 1)), real(make_batch))


def test_masks_without_a_known_pixel_do_not_count(made: Callable[[str], Metric], make_batch: MakeBatch) -> None:
    batch = real(make_batch)
    batch.mask = torch.full_like(batch.mask, IGNORE_INDEX)
    with pytest.raises(Skipped, match="no pixel has a known mask class"):
        score(made("generated/synthetic_miou"), canvas_of(boxes_of(40)), batch)


def test_a_class_without_samples_does_not_count(make_card: MakeCard, make_batch: MakeBatch) -> None:
    for name in ("generated/synthetic_miou", "generated/synthetic_ap50", "generated/cas"):
        metric = METRICS[name](MetricContext(make_card(3, 4), samples=200, conditions=("class",)))
        canvas = canvas_of(boxes_of(200))
        assert canvas.boxes is not None and canvas.mask is not None
        empty = torch.zeros(200, 1, SIDE // 2, SIDE // 2)
        canvas.boxes = torch.cat([canvas.boxes[:, :2], empty, canvas.boxes[:, 2:]], 1)
        canvas.mask = F.pad(canvas.mask, (0, 0, 0, 0, 0, 1))
        metric.update_generated(canvas, torch.arange(200) % 2, Prediction())
        metric.update_test(real(make_batch), Prediction())
        assert metric.compute()[name] > 0.9


@pytest.mark.parametrize("shifted", [False, True])
def test_generated_boxes_are_compared_with_those_that_the_reference_detector_predicts(
    assemble: Any, make_card: MakeCard, make_batch: MakeBatch, shifted: bool
) -> None:
    boxes = boxes_of(90)
    drawn = boxes.roll(1, 0) if shifted else boxes

    def draw(labels: Tensor, latent: Tensor) -> Canvas:
        return canvas_of(boxes[: len(labels)], drawn[: len(labels)])

    batch = real(make_batch, 90)
    report = evaluate(
        assemble(make_card(2, 3), draw), [batch], [batch], samples=90, seed=0, metrics=["generated/drawn_ap50"]
    )
    assert report["generated/drawn_ap50"] < 0.1 if shifted else report["generated/drawn_ap50"] > 0.9


def test_where_no_boxes_are_known_there_is_no_reference_detector(
    assemble: Any, make_card: MakeCard, make_batch: MakeBatch
) -> None:
    boxes, batch = boxes_of(90), real(make_batch, 90)
    batch.present["boxes"] = torch.zeros(90, dtype=torch.bool)
    model = assemble(make_card(2, 3), lambda labels, latent: canvas_of(boxes[: len(labels)]))
    report = evaluate(model, [batch], [batch], samples=90, seed=0, metrics=["generated/drawn_ap50"])
    assert "20 real training images with boxes" in report.skipped["generated/drawn_ap50"]


def test_the_detector_is_the_same_for_the_same_seed_and_leaves_global_random_numbers_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(detector, "DETECTOR_TRAIN_IMAGES", 5 * detector.DETECTOR_BATCH_SIZE)
    state, boxes = torch.get_rng_state(), boxes_of(30)
    first, second = (
        Detector(to_uint8(images_of(boxes)), boxes, 2, TrainingSpec(seed=1)).network.state_dict() for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)
