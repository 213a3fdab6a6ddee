"""Detection and tagging: their losses compared with the formulas, cell by cell and in double precision."""

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

from mtgen.schema import Canvas
from mtgen.tasks.base import DiscriminatorContext, GeneratorContext, StepContext

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
    logits, size, offset = discriminator.heads["detection"](discriminator.dense(discriminator.trunk(Canvas(image))))
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


def test_generated_centers_should_be_those_predicted_from_the_generated_image_and_those_of_given_boxes() -> None:
    context = in_generator_step()
    found = task(MADE, "detection").generator_losses(context, task_features(context, context.fake))
    logits, size, _ = predict(context.fake.image[: context.num_image_only])
    heat = sigmoid(logits)
    predicted = np.concatenate([heat, size * heat.max(axis=1, keepdims=True)], axis=1)
    assert context.fake.boxes is not None and context.original.boxes is not None
    generated = double(context.fake.boxes)[: context.num_image_only]
    unaugmented = context.fake_unaugmented[: context.num_image_only].numpy()
    assert 0 < unaugmented.sum() < len(unaugmented)  # boxes of rotated images are larger than their generated sizes
    distance = float((((predicted - generated) ** 2).sum(axis=(1, 2, 3)) * unaugmented).mean())
    close(found["agreement"], 0.1 * distance)
    close(found["distillation"], 0.2 * distance)
    distances = []
    for row in range(context.num_image_only):
        if context.prompt.given["boxes"][row] and context.fake_unaugmented[row]:
            hot, known = targets(context.original.boxes[row])
            layout = np.zeros((5, CELLS, CELLS))
            layout[:3] = hot
            for (y, x), k in known.items():  # cells around a center carry its size too, where the peak is above 0.05
                for i in range(CELLS):
                    for j in range(CELLS):
                        if np.exp(-((i - y) ** 2 + (j - x) ** 2) / (2 * 0.8**2)) > 0.05:
                            layout[3:, i, j] = np.maximum(layout[3:, i, j], k[:2])
            layout[3:] *= hot.max(axis=0)
            distances.append(((predicted[row] - layout) ** 2).sum() + ((generated[row] - layout) ** 2).sum())
    assert 1 < len(distances) < int(context.prompt.given["boxes"][: context.num_image_only].sum())
    close(
        found["layout"],
        0.1 * float(np.sum(distances)) / int(context.batch.present["boxes"][: context.num_image_only].sum()),
    )


def test_distillation_has_a_gradient_to_the_generated_boxes_and_none_to_the_image() -> None:
    context = in_generator_step()
    image, boxes = context.fake.image, context.fake.boxes
    assert boxes is not None
    for tensor in (image, boxes):
        tensor.requires_grad_()
    found = task(MADE, "detection").generator_losses(context, task_features(context, context.fake))

    def reached(name: str) -> list[bool]:
        gradients = torch.autograd.grad(found[name], [image, boxes], retain_graph=True, allow_unused=True)
        return [gradient is not None and bool(gradient.any()) for gradient in gradients]

    assert reached("agreement") == [True, True]
    assert reached("distillation") == [False, True]


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
    rows = [row for row in range(context.num_image_only) if context.batch.present["boxes"][row]]
    assert 0 < len(rows) < context.num_image_only
    close(found["cross_entropy"], float(np.mean([losses[row] for row in rows])))


def test_predicted_labels_of_conditioned_generated_images_should_be_those_of_the_sample() -> None:
    context = in_generator_step()
    found = task(MADE, "tagging").generator_losses(context, task_features(context, context.fake))
    losses = cross_entropies(context.fake.image, context)
    rows = [row for row in range(context.num_image_only) if context.batch.present["boxes"][row]]
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
