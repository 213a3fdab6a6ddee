"""Weak labels: what masks and boxes say about classes, and classes and boxes about masks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import toy
from helpers.step_contexts import discriminator_context, discriminator_features, networks, task
from scipy.special import log_softmax

from mtgen.conditions.layout import boxes_layout
from mtgen.models.model import Networks, build
from mtgen.schema import IGNORE_INDEX, Batch
from mtgen.tasks.weak_labels import (
    box_tightness,
    classes_in_mask,
    mask_classes_of,
    name_pairs,
    outside_boxes,
    single_class,
)

PAIRS = [(0, 1), (2, 2)]
"""Classes a, b, c; mask classes background, a, c."""
CONFIG = toy.config(
    augment__probability=0.2,
    data__path="x",
    tasks={"generation": {}, "classification": {}, "segmentation": {"weak": 0.5}, "detection": {}},
)
CARD = toy.CARD.model_copy(update={"mask_classes": ["background", "a"]})


def made() -> Networks:
    found = build(CONFIG, CARD)
    random = torch.Generator().manual_seed(4)
    for parameter in found.side.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=random))
    return found


def with_labels(*components: str) -> Batch:
    """A batch in which every sample has these components, and no other label."""
    batch = toy.batch(0, 16)
    present = {name: torch.full_like(has, name in components) for name, has in batch.present.items()}
    mask = batch.mask.clamp(max=1) if "mask" in components else torch.full_like(batch.mask, IGNORE_INDEX)
    return replace(batch, mask=mask, present=present, step_present=present)


def test_classes_correspond_by_their_names() -> None:
    assert name_pairs(["a", "b", "c"], ["background", "a", "c"]) == PAIRS
    assert name_pairs(["a"], ["background"]) == []
    assert mask_classes_of(torch.tensor([[0, 1], [2, -1]]), PAIRS).tolist() == [[1, -1], [2, -1]]


def test_a_mask_tells_which_classes_are_there() -> None:
    mask = torch.tensor([[[0, 1], [255, 1]], [[1, 2], [0, 0]], [[0, 0], [255, 255]]])
    assert classes_in_mask(mask, PAIRS, 3).tolist() == [[True, False, False], [True, False, True], [False] * 3]
    label, is_single = single_class(classes_in_mask(mask, PAIRS, 3))
    assert is_single.tolist() == [True, False, False] and label.tolist() == [0, 0, 0]


def test_a_pixel_outside_all_boxes_of_a_class_should_not_be_of_it() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, generator=random, requires_grad=True)
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 1.0, 0], [0, 0, 0, 0, -1]], [[0.5, 0.5, 1.0, 1.0, 2], [0, 0, 1, 1, 1]]])
    found = outside_boxes(logits.log_softmax(1), boxes_layout(boxes, 3, 4, 4), PAIRS)
    log_p = log_softmax(logits.detach().numpy().astype(np.float64), axis=1)
    for row in range(2):
        pixels = []
        for i in range(4):
            for j in range(4):
                possible = [0]
                possible += [1] if row == 0 and j < 2 else []
                possible += [2] if row == 1 and i >= 2 and j >= 2 else []
                pixels.append(-np.logaddexp.reduce([log_p[row, m, i, j] for m in possible]))
        assert found[row].item() == pytest.approx(float(np.mean(pixels)), rel=1e-5)
    found.sum().backward()
    assert logits.grad is not None and bool(torch.isfinite(logits.grad).all())


def test_masks_without_a_background_are_not_constrained_where_no_box_is() -> None:
    logits = torch.randn(1, 1, 4, 4, requires_grad=True)
    found = outside_boxes(logits.log_softmax(1), torch.zeros(1, 1, 4, 4), [(0, 0)])
    found.sum().backward()
    assert found.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_every_row_and_column_of_a_box_should_have_a_pixel_of_its_class() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5, 0], [0.0, 0.0, 1.0, 1.0, 1], [0, 0, 0, 0, -1]]])
    probability = torch.full((1, 3, 4, 4), 0.1)
    probability[0, 1, 0, 0] = probability[0, 1, 1, 1] = 1.0  # a diagonal crosses both rows and both columns
    assert box_tightness(probability, boxes, PAIRS).item() == pytest.approx(0)  # mask classes have no b
    probability[0, 1, 1, 1] = 0.5
    assert box_tightness(probability, boxes, PAIRS).item() == pytest.approx(np.log(2) / 2)
    assert box_tightness(probability, boxes[:, 2:], PAIRS).item() == 0


def test_a_mask_or_tags_of_one_class_teach_the_class_of_images_without_one() -> None:
    networks_, losses = made(), {}
    for components in (("mask",), ("tags",), ("class", "mask", "tags")):
        context = discriminator_context(CONFIG, networks_, with_labels(*components))
        losses[components] = task(networks_, "classification").discriminator_losses(
            context, discriminator_features(context)
        )
    assert losses["mask",]["implied_by_mask"].item() > 0 == losses["mask",]["implied_by_tags"].item()
    assert losses["tags",]["implied_by_tags"].item() > 0 == losses["tags",]["implied_by_mask"].item()
    assert losses["mask",]["cross_entropy"].item() == 0
    known = losses["class", "mask", "tags"]
    assert known["implied_by_mask"].item() == known["implied_by_tags"].item() == 0 < known["cross_entropy"].item()


def test_the_implied_class_is_the_only_one_in_the_mask() -> None:
    networks_ = made()
    context = discriminator_context(CONFIG, networks_, with_labels("mask"))
    found = task(networks_, "classification").discriminator_losses(context, discriminator_features(context))
    levels = networks_.side.discriminator.trunk(context.real)
    logits = task(networks_, "classification").logits(networks_.side.discriminator, levels).detach().double().numpy()
    has_thing = [bool((context.original.mask[row] == 1).any()) for row in range(context.num_image_only)]
    losses = [-log_softmax(logits[row])[0] if thing else 0.0 for row, thing in enumerate(has_thing)]
    assert found["implied_by_mask"].item() == pytest.approx(float(np.mean(losses)), rel=1e-4)


def test_classes_and_boxes_teach_masks_of_images_without_one() -> None:
    networks_, losses = made(), {}
    for components in (("class",), ("boxes",), ("class", "mask", "boxes")):
        context = discriminator_context(CONFIG, networks_, with_labels(*components))
        losses[components] = task(networks_, "segmentation").discriminator_losses(
            context, discriminator_features(context)
        )
    assert losses["class",]["weak_class"].item() > 0 == losses["class",]["weak_boxes"].item()
    assert losses["boxes",]["weak_boxes"].item() > 0 == losses["boxes",]["weak_class"].item()
    known = losses["class", "mask", "boxes"]
    assert known["weak_class"].item() == known["weak_boxes"].item() == 0 < known["cross_entropy"].item()


def test_without_names_in_common_nothing_is_implied() -> None:
    other = networks(CONFIG)  # its masks are of "none" and "thing"
    context = discriminator_context(CONFIG, other)
    features = discriminator_features(context)
    assert set(task(other, "segmentation").discriminator_losses(context, features)) == {"cross_entropy"}
    assert "implied_by_mask" not in task(other, "classification").discriminator_losses(context, features)
