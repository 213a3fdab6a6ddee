"""Detection and tagging: their losses compared with the formulas, cell by cell and in double precision."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import toy
from helpers.step_contexts import (
    discriminator_context,
    discriminator_features,
    generator_context,
    networks,
    task,
    task_features,
)
from torch import Tensor

from mtgen.networks.center_maps import confident, decode, encode
from mtgen.schema import Canvas
from mtgen.tasks.base import DiscriminatorContext, GeneratorContext, StepContext
from mtgen.tasks.detection import Detection

CONFIG = toy.everything(augment__probability=0.3, batch_size=32)
MADE = networks(CONFIG)
CELLS = 4


def double(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def close(found: Tensor, expected: float) -> None:
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def in_discriminator_step() -> DiscriminatorContext:
    return discriminator_context(CONFIG, MADE, toy.batch(0, 32))


def in_generator_step() -> GeneratorContext:
    return generator_context(CONFIG, MADE, toy.batch(0, 32))


def predict(image: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Center logits, sizes and offsets that are predicted from images."""
    discriminator = MADE.side.discriminator
    logits, size, offset = task(MADE, "detection").maps(discriminator, discriminator.trunk(Canvas(image)))
    return double(logits), double(size), double(offset)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def targets(boxes: Tensor) -> tuple[np.ndarray, dict[tuple[int, int], np.ndarray]]:
    """Heat `[3,4,4]` of an image, and cell -> width, height and offset.

    The boxes are small: their peaks reach one cell.
    """
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


def focal_loss(logits: np.ndarray, heat: np.ndarray) -> float:
    p, yes, no = sigmoid(logits), np.logaddexp(0, -logits), np.logaddexp(0, logits)  # -log p and -log(1 - p)
    return float(np.where(heat == 1, (1 - p) ** 2 * yes, (1 - heat) ** 4 * p**2 * no).sum())


def size_maps(heat: np.ndarray, known: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
    """Cells around a center carry its size too, where the peak is above 0.05."""
    sizes = np.zeros((2, CELLS, CELLS))
    for (y, x), k in known.items():
        for i in range(CELLS):
            for j in range(CELLS):
                if np.exp(-((i - y) ** 2 + (j - x) ** 2) / (2 * 0.8**2)) > 0.05:
                    sizes[:, i, j] = np.maximum(sizes[:, i, j], k[:2])
    return sizes * heat.max(axis=0)


def test_detection_is_the_focal_loss_of_centers_and_the_l1_distance_of_sizes_and_offsets() -> None:
    context = in_discriminator_step()
    found = task(MADE, "detection").discriminator_losses(context, discriminator_features(context))
    rows = [row for row in context.plain.tolist() if context.batch.present["boxes"][row]]
    assert 3 < len(rows) < len(context.plain)
    focal, sizes, offsets, numbers = [], [], [], set()
    for row in rows:
        assert context.original.boxes is not None
        heat, known = targets(context.original.boxes[row])
        (logit,), (size,), (offset,) = predict(context.original.image[row : row + 1])
        number = max(len(known), 1)
        numbers.add(len(known))
        focal.append(focal_loss(logit, heat) / number)
        sizes.append(sum(abs(size[:, i, j] - k[:2]).sum() for (i, j), k in known.items()) / number)
        offsets.append(sum(abs(offset[:, i, j] - k[2:]).sum() for (i, j), k in known.items()) / number)
    assert numbers == {0, 1, 2}
    close(found["centers"], float(np.mean(focal)))
    close(found["sizes"], 5 * float(np.mean(sizes)))
    close(found["offsets"], float(np.mean(offsets)))


def generated_distance(logits: np.ndarray, boxes: Tensor) -> float:
    """Focal loss of generated centers and 20 times the squared error of size maps, per box."""
    heat, known = targets(boxes)
    sizes = float(((sigmoid(logits[-2:]) - size_maps(heat, known)) ** 2).sum())
    return (focal_loss(logits[:-2], heat) + 20 * sizes) / max(len(known), 1)


def test_generated_centers_should_be_those_predicted_from_the_generated_image() -> None:
    context = in_generator_step()
    found = task(MADE, "detection").generator_losses(context, task_features(context, context.fake))
    logits, size, offset = predict(context.fake.image[: context.num_image_only])
    heat = sigmoid(logits)
    predicted = np.concatenate([heat, size * heat.max(axis=1, keepdims=True)], axis=1)
    assert context.fake.boxes is not None and context.fake.box_logits is not None
    rows = [row for row in range(context.num_image_only) if context.fake_unaugmented[row]]
    assert 0 < len(rows) < context.num_image_only  # boxes of rotated images are larger than their generated sizes
    generated = double(context.fake.boxes)
    close(found["agreement"], 0.1 * float(np.mean([((predicted[r] - generated[r]) ** 2).sum() for r in rows])))
    maps = [torch.from_numpy(x).float() for x in (heat, size, offset)]
    boxes, number = confident(decode(*maps)), 0
    distances = []
    for row in rows:
        number += int((boxes[row][:, 4] >= 0).sum())
        target = encode(boxes[row : row + 1], 3, (CELLS, CELLS))
        map_logits = double(context.fake.box_logits[row])
        sizes = ((sigmoid(map_logits[-2:]) - double(target.canvas()[0, -2:])) ** 2).sum()
        focal = focal_loss(map_logits[:-2], double(target.heat[0]))
        distances.append((focal + 20 * sizes) / max(int(target.here.sum()), 1))
    assert number > 5
    close(found["distillation"], 0.2 * float(np.mean(distances)))


def test_generated_and_predicted_boxes_should_be_those_of_a_given_layout() -> None:
    context = in_generator_step()
    found = task(MADE, "detection").generator_losses(context, task_features(context, context.fake))
    assert context.fake.box_logits is not None and context.original.boxes is not None
    logits, size, offset = predict(context.fake.image[: context.num_image_only])
    distances = []
    for row in range(context.num_image_only):
        if context.prompt.given["boxes"][row] and context.fake_unaugmented[row]:
            boxes = context.original.boxes[row]
            heat, known = targets(boxes)
            number = max(len(known), 1)
            sizes = sum(abs(size[row][:, i, j] - k[:2]).sum() for (i, j), k in known.items())
            offsets = sum(abs(offset[row][:, i, j] - k[2:]).sum() for (i, j), k in known.items())
            predicted = (focal_loss(logits[row], heat) + 5 * sizes + offsets) / number
            distances.append(predicted + generated_distance(double(context.fake.box_logits[row]), boxes))
    assert 1 < len(distances) < int(context.prompt.given["boxes"][: context.num_image_only].sum())
    close(found["layout"], 0.02 * float(np.mean(distances)))


def test_distillation_has_a_gradient_to_the_generated_boxes_and_none_to_the_image() -> None:
    context = in_generator_step()
    image, logits = context.fake.image.requires_grad_(), context.fake.box_logits
    assert logits is not None
    boxes = logits.requires_grad_().sigmoid()
    context = replace(context, fake=replace(context.fake, boxes=boxes))
    found = task(MADE, "detection").generator_losses(context, task_features(context, context.fake))

    def reached(name: str) -> list[bool]:
        gradients = torch.autograd.grad(found[name], [image, logits], retain_graph=True, allow_unused=True)
        return [gradient is not None and bool(gradient.any()) for gradient in gradients]

    assert reached("agreement") == [True, True]
    assert reached("distillation") == [False, True]


def test_the_peaks_of_a_map_get_as_much_gradient_as_its_background() -> None:
    boxes = torch.tensor([[[0.1, 0.1, 0.3, 0.3, 0], [0.6, 0.5, 0.8, 0.8, 2]]])
    target = encode(boxes, 3, (16, 16))
    logits = torch.full((1, 5, 16, 16), -4.0, requires_grad=True)
    Detection._generated_distance(logits, target).sum().backward()
    assert logits.grad is not None
    gradient, peak = logits.grad[:, :3], target.heat == 1
    assert -gradient[peak].sum() > gradient[~peak].clamp_min(0).sum() > 0


def cross_entropies(image: Tensor, context: StepContext) -> list[float]:
    """For each image-only row the mean over classes of the binary cross-entropy with the labels."""
    discriminator = MADE.side.discriminator
    probability = 1 / (
        1 + np.exp(-double(discriminator.heads["tagging"](discriminator.summary(discriminator.trunk(Canvas(image))))))
    )
    assert context.batch.labels is not None
    present = context.batch.labels.numpy()
    return [
        -float(np.mean(np.log(np.where(present[row], probability[row], 1 - probability[row]))))
        for row in range(context.num_image_only)
    ]


def test_tagging_is_the_binary_cross_entropy_of_each_class_in_images_with_labels() -> None:
    context = in_discriminator_step()
    found = task(MADE, "tagging").discriminator_losses(context, discriminator_features(context))
    losses = cross_entropies(context.batch.image, context)
    rows = [row for row in range(context.num_image_only) if context.batch.present["tags"][row]]
    assert 0 < len(rows) < context.num_image_only
    close(found["cross_entropy"], float(np.mean([losses[row] for row in rows])))


def test_predicted_labels_of_conditioned_generated_images_should_be_those_of_the_sample() -> None:
    context = in_generator_step()
    found = task(MADE, "tagging").generator_losses(context, task_features(context, context.fake))
    losses = cross_entropies(context.fake.image, context)
    rows = [row for row in range(context.num_image_only) if context.batch.present["tags"][row]]
    names = [name for name in context.prompt.given if name != "domain"]
    conditioned = [row for row in rows if any(context.prompt.given[name][row] for name in names)]
    close(found["agreement"], 0.1 * float(np.sum([losses[row] for row in conditioned])) / len(rows))


def test_a_domain_alone_conditions_no_label() -> None:
    context = in_generator_step()
    for name, given in context.prompt.given.items():
        given.fill_(name == "domain")
    assert not context.is_conditioned.any()
    features = task_features(context, context.fake)
    assert task(MADE, "tagging").generator_losses(context, features)["agreement"].item() == 0
    assert task(MADE, "classification").generator_losses(context, features)["agreement"].item() == 0
