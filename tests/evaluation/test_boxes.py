"""Average precision of boxes and tags, against brute force, pycocotools and scikit-learn."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional as F

from mtgen.evaluation.base import MetricContext, Skipped
from mtgen.evaluation.collectors.box_average_precision import BoxAveragePrecision
from mtgen.evaluation.metric import METRICS, Metric
from mtgen.evaluation.metrics.tagging_map import average_precision
from mtgen.networks.center_maps import encode
from mtgen.schema import Batch, Canvas, DatasetCard, Prediction

MakeBatch = Callable[..., Batch]
MakeCard = Callable[..., DatasetCard]


def metric(name: str, card: DatasetCard) -> Metric:
    return METRICS[name](MetricContext(card, samples=100))


def scene(seed: int, images: int, classes: int = 2) -> tuple[Tensor, Tensor]:
    """True boxes `[B,3,5]` and predicted ones `[B,6,6]`: some near the true ones, some anywhere, some padding."""
    g = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(images, 3, 2, generator=g) * 0.5, torch.rand(images, 3, 2, generator=g) * 0.3 + 0.1
    kind = torch.randint(-1, classes, (images, 3, 1), generator=g)
    true = torch.cat([corner, corner + size, kind], 2)
    near = true[..., :4] + 0.03 * (torch.rand(images, 3, 4, generator=g) * 2 - 1)  # no box turns inside out
    corner = torch.rand(images, 3, 2, generator=g) * 0.5
    corners = torch.cat([near, torch.cat([corner, corner + 0.3], 2)], 1)
    read_kind = torch.cat([kind.clamp_min(0), torch.randint(0, classes, (images, 3, 1), generator=g)], 1)
    score = torch.rand(images, 6, 1, generator=g)
    return true, torch.cat([corners, read_kind, score * (score > 0.2)], 2)


def overlap(a: list[float], b: list[float]) -> float:
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(across, 0) * max(down, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def brute_force(true: Tensor, read: Tensor, classes: int, least: float) -> float:
    """Average precision by definition: by score, each box takes the free true box that it overlaps most."""
    found = []
    for k in range(classes):
        truth = [(i, box) for i, boxes in enumerate(true.tolist()) for box in boxes if box[4] == k]
        guesses = [(i, box) for i, boxes in enumerate(read.tolist()) for box in boxes if box[4] == k and box[5] > 0]
        if not truth:
            continue
        taken, hits = set(), []
        for i, box in sorted(guesses, key=lambda guess: -guess[1][5]):
            free = [(overlap(box, other[1]), t) for t, other in enumerate(truth) if other[0] == i and t not in taken]
            best = max(free, default=(0.0, -1))
            hits.append(best[0] >= least)
            if hits[-1]:
                taken.add(best[1])
        right = [sum(hits[: n + 1]) for n in range(len(hits))]
        points = [(r / len(truth), r / (n + 1)) for n, r in enumerate(right)]
        found.append(
            sum(max((p for recall, p in points if recall >= step), default=0.0) for step in np.linspace(0, 1, 101))
            / 101
        )
    return sum(found) / len(found)


@given(st.integers(0, 10_000), st.integers(1, 12))
def test_average_precision_is_the_brute_force_one(seed: int, images: int) -> None:
    true, read = scene(seed, images)
    true[0, 0, 4] = 0  # at least one box
    precision = BoxAveragePrecision(2)
    for rows in torch.arange(images).split(5):
        precision.update(true[rows], read[rows])
    half, mean = precision.compute()
    assert half == pytest.approx(brute_force(true, read, 2, 0.5), abs=1e-9)
    assert mean == pytest.approx(
        sum(brute_force(true, read, 2, least) for least in np.linspace(0.5, 0.95, 10)) / 10, abs=1e-9
    )


def pycocotools(true: Tensor, read: Tensor, classes: int) -> tuple[float, float]:
    """AP50 and AP of COCO's own code, images taken for 640 x 480 pixels."""
    size = torch.tensor([640.0, 480.0, 640.0, 480.0], dtype=torch.float64)

    def described(boxes: Tensor, there: Tensor) -> list[dict[str, object]]:
        found = []
        for number, (image, row) in enumerate(there.nonzero().tolist()):
            x0, y0, x1, y1 = (boxes[image, row, :4].double() * size).tolist()
            box = {
                "image_id": image + 1,
                "category_id": int(boxes[image, row, 4]) + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
            }
            found.append(
                {
                    **box,
                    "id": number + 1,
                    "iscrowd": 0,
                    "area": (x1 - x0) * (y1 - y0),
                    "score": float(boxes[image, row, -1]),
                }
            )
        return found

    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": n + 1, "width": 640, "height": 480} for n in range(len(true))],
        "categories": [{"id": k + 1, "name": str(k)} for k in range(classes)],
        "annotations": described(true, true[..., 4] >= 0),
    }
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(described(read, read[..., 5] > 0)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[1]), float(evaluation.stats[0])


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 4))
def test_average_precision_is_that_of_pycocotools(seed: int, images: int, classes: int) -> None:
    true, read = scene(seed, images, classes)
    true[0, 0, 4] = 0  # at least one box, and one that is read
    read[0, 0, 5] = 0.5
    precision = BoxAveragePrecision(classes)
    precision.update(true, read)
    assert precision.compute() == pytest.approx(pycocotools(true, read, classes), abs=1e-9)


def test_boxes_that_are_all_found_have_precision_one() -> None:
    true, _ = scene(0, 8)
    precision = BoxAveragePrecision(2)
    precision.update(true, torch.cat([true, (true[..., 4:] >= 0).float()], 2))
    assert precision.compute() == (pytest.approx(1), pytest.approx(1))


def test_reading_nothing_has_precision_zero() -> None:
    precision = BoxAveragePrecision(2)
    precision.update(scene(0, 4)[0], torch.zeros(4, 6, 6))
    assert precision.compute() == (0.0, 0.0)


def test_without_true_boxes_there_is_no_precision() -> None:
    precision = BoxAveragePrecision(2)
    with pytest.raises(Skipped, match="no true box"):
        precision.compute()
    precision.update(torch.full((4, 2, 5), -1.0), scene(0, 4)[1])
    with pytest.raises(Skipped, match="no true box"):
        precision.compute()


def with_boxes(batch: Batch, boxes: Tensor, known: Tensor, labels: Tensor | None = None) -> Batch:
    batch.boxes, batch.labels = boxes, labels
    batch.present |= {"boxes": known, "tags": known}
    return batch


def test_images_whose_boxes_are_not_known_do_not_count(make_card: MakeCard, make_batch: MakeBatch) -> None:
    ap, (true, _) = metric("test/box_ap50", make_card(2)), scene(0, 6)
    predicted = torch.cat([true, (true[..., 4:] >= 0).float()], 2)
    predicted[3:, :, :4] = 0.1
    ap.update_test(
        with_boxes(make_batch(torch.zeros(6, 1, 8, 8)), true, torch.arange(6) < 3), Prediction(boxes=predicted)
    )
    assert ap.compute() == {"test/box_ap50": pytest.approx(1), "test/box_ap": pytest.approx(1)}


def test_generated_boxes_agree_with_equal_predicted_boxes(make_card: MakeCard) -> None:
    agreement = metric("generated/box_agreement", make_card(2))
    true = torch.tensor([[[0.25, 0.25, 0.75, 0.75, 1.0]], [[0.1, 0.2, 0.5, 0.6, 0.0]]])
    drawn = encode(true, 2, (16, 16)).canvas()
    right = torch.cat([true, torch.ones(2, 1, 1)], 2)
    agreement.update_generated(Canvas(torch.zeros(2, 1, 32, 32), boxes=drawn), torch.zeros(2), Prediction(boxes=right))
    assert agreement.compute() == {"generated/box_agreement": pytest.approx(1)}
    right[1, 0, :4] = torch.tensor([0.6, 0.6, 0.9, 0.9])
    agreement = metric("generated/box_agreement", make_card(2))
    agreement.update_generated(Canvas(torch.zeros(2, 1, 32, 32), boxes=drawn), torch.zeros(2), Prediction(boxes=right))
    assert agreement.compute() == {"generated/box_agreement": pytest.approx(0.5)}


@given(st.integers(0, 10_000), st.integers(1, 40))
def test_average_precision_of_scores_is_scikit_learns(seed: int, n: int) -> None:
    g = torch.Generator().manual_seed(seed)
    score, true = torch.randint(0, 8, (n,), generator=g).float(), torch.rand(n, generator=g) < 0.5
    true[0] = True
    assert average_precision(score, true) == pytest.approx(average_precision_score(true, score))


def test_classes_that_are_in_no_image_do_not_count_in_tagging(make_card: MakeCard, make_batch: MakeBatch) -> None:
    tagging, labels = metric("test/tagging_map", make_card(3)), F.one_hot(torch.arange(6) % 2, 3).bool()
    batch = with_boxes(make_batch(torch.zeros(6, 1, 8, 8)), torch.zeros(6, 1, 5), torch.arange(6) < 4, labels)
    tagging.update_test(batch, Prediction(label_logits=labels.float()))
    assert tagging.compute() == {"test/tagging_map": pytest.approx(1)}


@pytest.mark.parametrize("name", ["test/box_ap50", "generated/box_agreement", "test/tagging_map"])
def test_metrics_of_boxes_need_classes(make_card: MakeCard, name: str) -> None:
    with pytest.raises(Skipped, match="names no classes"):
        metric(name, make_card(classes=0))


@pytest.mark.parametrize(("name", "what"), [("test/box_ap50", "boxes"), ("test/tagging_map", "the labels of images")])
def test_metrics_of_predictions_of_boxes_need_those_predictions(
    make_card: MakeCard, make_batch: MakeBatch, name: str, what: str
) -> None:
    with pytest.raises(Skipped, match=f"does not predict {what}"):
        metric(name, make_card()).update_test(make_batch(torch.zeros(1, 1, 8, 8)), Prediction())
