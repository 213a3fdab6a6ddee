"""Detection and tagging: their losses against the formulas written down again, cell by cell and in double precision."""

import numpy as np
import pytest
import torch
from helpers import toy
from helpers.scenes import discriminator_views, networks, scene, task, views
from torch import Tensor

from mtgen.schema import Canvas
from mtgen.tasks.base import StepContext

CONFIG = toy.everything(augment__probability=0.3, batch_size=32)
MADE = networks(CONFIG)
CELLS = 4


def double(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def close(found: Tensor, expected: float) -> None:
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def laid(seen: str = "discriminator") -> StepContext:
    return scene(CONFIG, MADE, toy.batch(0, 32), seen)


def read(image: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Center logits, sizes and offsets that are read in images."""
    discriminator = MADE.side.discriminator
    logits, size, offset = discriminator.heads["detection"](discriminator.dense(discriminator.trunk(Canvas(image))))
    return double(logits), double(size), double(offset)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def targets(boxes: Tensor) -> tuple[np.ndarray, dict[tuple[int, int], np.ndarray]]:
    """Heat `[3,4,4]` of an image, and cell -> width, height and place in the cell. Boxes here are small: their peaks reach one cell."""
    heat, known = np.zeros((3, CELLS, CELLS)), {}
    for x0, y0, x1, y1, kind in boxes.double().tolist():
        if kind < 0:
            continue
        x, y = (x0 + x1) / 2 * CELLS, (y0 + y1) / 2 * CELLS
        row, column = min(int(y), CELLS - 1), min(int(x), CELLS - 1)
        for i in range(CELLS):
            for j in range(CELLS):
                heat[int(kind), i, j] = max(
                    heat[int(kind), i, j], np.exp(-((i - row) ** 2 + (j - column) ** 2) / (2 * 0.8**2))
                )
        known[row, column] = np.array([x1 - x0, y1 - y0, x - column, y - row])
    return heat, known


def test_detection_is_the_focal_loss_of_centers_and_the_l1_distance_of_sizes_and_offsets() -> None:
    laid_out = laid()
    found = task(MADE, "detection").discriminator_losses(laid_out, discriminator_views(laid_out))
    rows = [row for row in laid_out.plain.tolist() if laid_out.batch.present["boxes"][row]]
    assert 3 < len(rows) < len(laid_out.plain)
    focal, sizes, offsets, numbers = [], [], [], set()
    for row in rows:
        assert laid_out.original.boxes is not None
        heat, known = targets(laid_out.original.boxes[row])
        (logit,), (size,), (offset,) = read(laid_out.original.image[row : row + 1])
        p, yes, no = sigmoid(logit), np.logaddexp(0, -logit), np.logaddexp(0, logit)  # -log p and -log(1 - p)
        cells = np.where(heat == 1, (1 - p) ** 2 * yes, (1 - heat) ** 4 * p**2 * no)
        number = max(len(known), 1)
        numbers.add(len(known))
        focal.append(cells.sum() / number)
        sizes.append(sum(abs(size[:, i, j] - k[:2]).sum() for (i, j), k in known.items()) / number)
        offsets.append(sum(abs(offset[:, i, j] - k[2:]).sum() for (i, j), k in known.items()) / number)
    assert numbers == {0, 1, 2}
    close(found["centers"], float(np.mean(focal)))
    close(found["sizes"], 5 * float(np.mean(sizes)))
    close(found["offsets"], float(np.mean(offsets)))


def test_drawn_centers_should_be_those_that_are_read_in_the_drawn_image_and_those_that_were_asked_for() -> None:
    laid_out = laid("generator")
    found = task(MADE, "detection").generator_losses(laid_out, views(laid_out, laid_out.fake))
    logits, size, _ = read(laid_out.fake.image[: laid_out.reading])
    heat = sigmoid(logits)
    seen = np.concatenate([heat, size * heat.max(axis=1, keepdims=True)], axis=1)
    assert laid_out.fake.boxes is not None and laid_out.original.boxes is not None
    drawn = double(laid_out.fake.boxes)[: laid_out.reading]
    unchanged = laid_out.unaugmented[: laid_out.reading].numpy()
    assert 0 < unchanged.sum() < len(unchanged)  # in images that were turned, boxes are not as large as they were drawn
    apart = float((((seen - drawn) ** 2).sum(axis=(1, 2, 3)) * unchanged).mean())
    close(found["agreement"], 0.1 * apart)
    close(found["distillation"], 0.2 * apart)
    away = []
    for row in range(laid_out.reading):
        if laid_out.prompt.given["boxes"][row] and laid_out.unaugmented[row]:
            hot, known = targets(laid_out.original.boxes[row])
            asked = np.zeros((5, CELLS, CELLS))
            asked[:3] = hot
            for (
                row_of,
                column_of,
            ), k in known.items():  # a size also stands around its center, where the peak is above 0.05
                for i in range(CELLS):
                    for j in range(CELLS):
                        if np.exp(-((i - row_of) ** 2 + (j - column_of) ** 2) / (2 * 0.8**2)) > 0.05:
                            asked[3:, i, j] = np.maximum(asked[3:, i, j], k[:2])
            asked[3:] *= hot.max(axis=0)
            away.append(((seen[row] - asked) ** 2).sum() + ((drawn[row] - asked) ** 2).sum())
    assert 1 < len(away) < int(laid_out.prompt.given["boxes"][: laid_out.reading].sum())
    close(found["layout"], 0.1 * float(np.sum(away)) / int(laid_out.batch.present["boxes"][: laid_out.reading].sum()))


def test_what_is_read_teaches_what_is_drawn_and_the_image_learns_nothing_by_it() -> None:
    laid_out = laid("generator")
    image, boxes = laid_out.fake.image, laid_out.fake.boxes
    assert boxes is not None
    for drawn in (image, boxes):
        drawn.requires_grad_()
    found = task(MADE, "detection").generator_losses(laid_out, views(laid_out, laid_out.fake))

    def reached(name: str) -> list[bool]:
        slopes = torch.autograd.grad(found[name], [image, boxes], retain_graph=True, allow_unused=True)
        return [slope is not None and bool(slope.any()) for slope in slopes]

    assert reached("agreement") == [True, True]
    assert reached("distillation") == [False, True]


def crossed(image: Tensor, laid_out: StepContext) -> list[float]:
    """For each reading row the mean over classes of the binary cross-entropy with the labels."""
    discriminator = MADE.side.discriminator
    probability = 1 / (
        1 + np.exp(-double(discriminator.heads["tagging"](discriminator.summary(discriminator.trunk(Canvas(image))))))
    )
    assert laid_out.batch.labels is not None
    there = laid_out.batch.labels.numpy()
    return [
        -float(np.mean(np.log(np.where(there[row], probability[row], 1 - probability[row]))))
        for row in range(laid_out.reading)
    ]


def test_tagging_is_the_binary_cross_entropy_of_each_class_in_images_with_labels() -> None:
    laid_out = laid()
    found = task(MADE, "tagging").discriminator_losses(laid_out, discriminator_views(laid_out))
    losses = crossed(laid_out.batch.image, laid_out)
    rows = [row for row in range(laid_out.reading) if laid_out.batch.present["boxes"][row]]
    assert 0 < len(rows) < laid_out.reading
    close(found["cross_entropy"], float(np.mean([losses[row] for row in rows])))


def test_labels_of_generated_images_should_be_those_of_the_sample_where_anything_was_asked_for() -> None:
    laid_out = laid("generator")
    found = task(MADE, "tagging").generator_losses(laid_out, views(laid_out, laid_out.fake))
    losses = crossed(laid_out.fake.image, laid_out)
    rows = [row for row in range(laid_out.reading) if laid_out.batch.present["boxes"][row]]
    names = [name for name in laid_out.prompt.given if name != "domain"]
    asked = [row for row in rows if any(laid_out.prompt.given[name][row] for name in names)]
    close(found["agreement"], 0.1 * float(np.sum([losses[row] for row in asked])) / len(rows))


def test_a_domain_alone_asks_for_nothing_that_could_be_read() -> None:
    laid_out = laid("generator")
    for name, given in laid_out.prompt.given.items():
        given.fill_(name == "domain")
    assert not laid_out.is_conditioned.any()
    seen = views(laid_out, laid_out.fake)
    assert task(MADE, "tagging").generator_losses(laid_out, seen)["agreement"].item() == 0
    assert task(MADE, "classification").generator_losses(laid_out, seen)["agreement"].item() == 0
