"""Self-training: the averaged discriminator labels what has no label, once it is good enough."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import toy
from helpers.step_contexts import discriminator_context, discriminator_features, networks, task, unlabeled
from scipy.special import log_softmax

from mtgen.models.ema import EMA
from mtgen.models.model import Predictor
from mtgen.networks.center_maps import encode
from mtgen.schema import Canvas
from mtgen.tasks.base import DiscriminatorContext, PseudoLabels
from mtgen.training.run_setup import named_networks
from mtgen.training.teacher import START, Teacher

TASKS = {name: {"self_training": 2.0} for name in ("classification", "segmentation", "detection")}
CONFIG = toy.config(augment__probability=0.4, batch_size=32, tasks={"generation": {}, **TASKS})
MADE = networks(CONFIG)


def pseudo(batch: int = 32) -> PseudoLabels:
    """Sure and unsure predictions."""
    random = torch.Generator().manual_seed(1)
    boxes = toy.some_boxes(batch, random)
    score = torch.tensor([0.9, 0.3, 0.7, 0.8]).repeat(batch // 4)[:, None, None]
    return PseudoLabels(
        (20 * torch.randn(batch, 3, generator=random)).softmax(1),
        (4 * torch.randn(batch, 2, 8, 8, generator=random)).softmax(1),
        torch.cat([boxes, score * (boxes[..., 4:] >= 0)], 2),
    )


def context(labeled: bool) -> DiscriminatorContext:
    batch = toy.batch(0, 32)
    return replace(discriminator_context(CONFIG, MADE, batch if labeled else unlabeled(batch)), pseudo=pseudo())


def test_the_teacher_predicts_with_the_averaged_weights_and_leaves_the_live_ones() -> None:
    made, other = networks(CONFIG), networks(CONFIG)
    average = EMA(named_networks(made), 10.0)
    for tensor in average.average:
        tensor.add_(0.1)
    for (_, network), (_, live) in zip(named_networks(other), named_networks(made), strict=True):
        for parameter, old in zip(network.parameters(), live.parameters(), strict=True):
            parameter.data.copy_(old.data + 0.1)
    before = toy.parameters(made)
    _, d_step, _ = toy.steps(CONFIG)
    batch = toy.batch(0, 16)
    roles = d_step.assign_roles(batch, made.generator)
    warp = d_step.warp(roles, "real")
    teacher = Teacher(CONFIG, made, average)
    found = teacher(roles.batch.image, warp, CONFIG.train.images)
    expected = Predictor(other.side.discriminator, other.tasks)(roles.batch.image)
    assert found is not None and found.classes is not None and found.masks is not None and found.boxes is not None
    assert expected.class_logits is not None and expected.mask_logits is not None and expected.boxes is not None
    assert torch.allclose(found.classes, expected.class_logits.softmax(1), atol=1e-6)
    assert torch.allclose(found.masks, warp(expected.mask_logits.softmax(1)), atol=1e-6)
    assert torch.allclose(found.boxes, expected.boxes, atol=1e-5)
    assert not found.classes.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in toy.parameters(made).items())


def test_early_in_the_run_nothing_is_taught() -> None:
    _, d_step, _ = toy.steps(CONFIG)
    roles = d_step.assign_roles(toy.batch(0, 16), MADE.generator)
    teacher = Teacher(CONFIG, MADE, EMA(named_networks(MADE), 10.0))
    start = round(START * CONFIG.train.images)
    assert teacher(roles.batch.image, d_step.warp(roles, "real"), start - 1) is None
    assert teacher(roles.batch.image, d_step.warp(roles, "real"), start) is not None
    early = replace(context(labeled=False), pseudo=None)
    for name in TASKS:
        losses = task(MADE, name).discriminator_losses(early, discriminator_features(early))
        assert losses["self_training"].item() == 0


def test_a_sure_class_is_the_label_of_images_without_one() -> None:
    found = context(labeled=True)
    losses = task(MADE, "classification").discriminator_losses(found, discriminator_features(found))
    levels = MADE.side.discriminator.trunk(found.real)
    logits = task(MADE, "classification").logits(MADE.side.discriminator, levels).detach().double().numpy()
    assert found.pseudo is not None and found.pseudo.classes is not None
    expected = []
    for row in range(found.num_image_only):
        probability, label = found.pseudo.classes[row].max(0)
        use = probability > 0.95 and not found.batch.present["class"][row]
        expected.append(-log_softmax(logits[row])[label] if use else 0.0)
    assert 0 < np.count_nonzero(expected) < (~found.batch.present["class"][: found.num_image_only]).sum() + 1
    assert losses["self_training"].item() == pytest.approx(2 * float(np.mean(expected)), rel=1e-4)


def test_sure_pixels_are_the_mask_of_images_without_one() -> None:
    found = context(labeled=True)
    losses = task(MADE, "segmentation").discriminator_losses(found, discriminator_features(found))
    discriminator = MADE.side.discriminator
    logits = task(MADE, "segmentation").logits(discriminator, discriminator.trunk(Canvas(found.batch.image)))
    log_p = log_softmax(logits.detach().double().numpy(), axis=1)
    assert found.pseudo is not None and found.pseudo.masks is not None
    expected = []
    for row in range(found.num_image_only):
        probability, mask = found.pseudo.masks[row].max(0)
        pixels = [-log_p[row, mask[i, j], i, j] if probability[i, j] > 0.9 else 0.0 for i in range(8) for j in range(8)]
        expected.append(0.0 if found.batch.present["mask"][row] else float(np.mean(pixels)))
    assert 0 < np.count_nonzero(expected) < found.num_image_only
    assert losses["self_training"].item() == pytest.approx(2 * float(np.mean(expected)), rel=1e-4)


def test_sure_boxes_are_those_of_plain_images_without_boxes() -> None:
    found = context(labeled=True)
    detection = task(MADE, "detection")
    losses = detection.discriminator_losses(found, discriminator_features(found))
    maps = detection.maps(MADE.side.discriminator, MADE.side.discriminator.trunk(Canvas(found.batch.image)))
    assert found.pseudo is not None and found.pseudo.boxes is not None
    expected = []
    for row in found.plain.tolist():
        sure = [box[:5].tolist() for box in found.pseudo.boxes[row] if box[5] > 0.6]
        if not sure or found.batch.present["boxes"][row]:
            expected.append(0.0)
            continue
        target = encode(torch.tensor([sure]), 3, (4, 4))
        distance = detection._distance(*(part[row : row + 1] for part in maps), target)
        expected.append(distance.sum().item())
    assert 0 < np.count_nonzero(expected) < len(expected)
    assert losses["self_training"].item() == pytest.approx(2 * float(np.mean(expected)), rel=1e-4)
