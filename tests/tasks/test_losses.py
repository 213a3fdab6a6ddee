"""Losses compared with their formulas, in numpy and in double precision, sample by sample."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import toy
from helpers.step_contexts import (
    discriminator_context,
    discriminator_features,
    generator_context,
    networks,
    task,
    task_features,
    unlabeled,
)
from scipy.special import log_softmax
from torch import Tensor

from mtgen.config import TASKS
from mtgen.models.model import Networks
from mtgen.schema import IGNORE_INDEX, Canvas, Condition
from mtgen.tasks.base import DiscriminatorContext, StepContext

CONFIG = toy.config(augment__probability=0.4, conditions__class={"probability": 0.5})
MADE = networks(CONFIG)


def double(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x)


def logits(context: StepContext, canvas: Canvas) -> np.ndarray:
    """The relativistic logit of every row, by its definition: <e(x), v + c> / sqrt(d)."""
    head = MADE.side.discriminator.heads["generation"]
    summary = double(MADE.side.discriminator.summary(MADE.side.discriminator.trunk(canvas)))
    embedded = summary @ double(head.embed.weight).T  # type: ignore[union-attr,arg-type]
    return (embedded * (double(head.direction) + double(context.condition.pooled))).sum(1) / np.sqrt(8)  # type: ignore[arg-type]


def close(found: Tensor, expected: float) -> None:
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_every_task_is_tested() -> None:
    here = ["classification", "generation", "reconstruction", "segmentation"]
    in_other_files = ["alignment", "detection", "tagging", "translation"]
    assert sorted([*here, *in_other_files]) == TASKS.names()


def test_classification_is_the_mean_cross_entropy_of_labeled_image_only_rows() -> None:
    context = discriminator_context(CONFIG, MADE)
    losses = task(MADE, "classification").discriminator_losses(context, discriminator_features(context))
    head = MADE.side.discriminator.heads["classification"]
    predicted = log_softmax(
        double(head(MADE.side.discriminator.summary(MADE.side.discriminator.trunk(Canvas(context.batch.image))))),
        axis=1,
    )
    rows = [row for row in range(context.num_image_only) if context.batch.present["class"][row]]
    assert 0 < len(rows) < context.num_image_only
    close(losses["cross_entropy"], -np.mean([predicted[row, context.batch.label[row]] for row in rows]))


def test_predicted_classes_of_generated_images_should_be_their_conditions() -> None:
    context = generator_context(CONFIG, MADE)
    losses = task(MADE, "classification").generator_losses(context, task_features(context, context.fake))
    head = MADE.side.discriminator.heads["classification"]
    predicted = log_softmax(
        double(head(MADE.side.discriminator.summary(MADE.side.discriminator.trunk(Canvas(context.fake.image))))),
        axis=1,
    )
    rows = [row for row in range(context.num_image_only) if context.batch.present["class"][row]]
    conditioned = [row for row in rows if context.prompt.given["class"][row]]  # the class of the others is unknown
    assert 0 < len(conditioned) < len(rows)
    close(
        losses["agreement"],
        -0.1 * float(sum(predicted[row, context.batch.label[row]] for row in conditioned)) / len(rows),
    )


def test_generated_images_are_examples_of_their_class_where_the_prediction_agrees() -> None:
    config = toy.config(conditions__class={"probability": 0.9}, tasks__classification__generated=0.5)
    made = networks(config)
    context = discriminator_context(config, made)
    assert context.fake is not None
    losses = task(made, "classification").discriminator_losses(context, discriminator_features(context))
    discriminator = made.side.discriminator
    logits = task(made, "classification").logits(discriminator, discriminator.trunk(context.fake))
    predicted, expected = log_softmax(double(logits), axis=1), []
    for row in range(context.num_image_only):
        label = int(context.batch.label[row])
        use = context.prompt.given["class"][row] and predicted[row].argmax() == label
        expected.append(-predicted[row, label] if use else 0.0)
    assert 0 < np.count_nonzero(expected) < len(expected)
    close(losses["generated"], 0.5 * float(np.mean(expected)))


def predicted_masks(image: Tensor) -> np.ndarray:
    """Log-probabilities of the mask classes: the head's logits, plus the classification's predictions times factors."""
    discriminator = MADE.side.discriminator
    levels, head = discriminator.trunk(Canvas(image)), discriminator.heads["segmentation"]
    own = F.conv2d(discriminator.dense(levels), head.kernel, head.bias)  # type: ignore[arg-type]
    classes = log_softmax(double(discriminator.heads["classification"](discriminator.summary(levels))), axis=1)
    factors = double(head.reader.factors["classification"])  # type: ignore[union-attr, index, arg-type]
    return log_softmax(double(own) + ((classes.clip(-4) + 2) @ factors.T)[:, :, None, None], axis=1)


def test_segmentation_is_a_mean_over_known_pixels_and_then_over_samples() -> None:
    batch = toy.batch(0, 16)
    batch.mask[::4, :5] = IGNORE_INDEX  # partly known
    context = discriminator_context(CONFIG, MADE, batch)
    losses = task(MADE, "segmentation").discriminator_losses(context, discriminator_features(context))
    predicted, samples, known = predicted_masks(context.batch.image), [], set()
    for row in range(context.num_image_only):
        pixels = [(i, j) for i in range(8) for j in range(8) if context.batch.mask[row, i, j] != IGNORE_INDEX]
        if context.batch.present["mask"][row]:
            known.add(len(pixels))
            samples.append(-np.mean([predicted[row, context.batch.mask[row, i, j], i, j] for i, j in pixels]))
    assert known == {24, 64}
    assert len(samples) < context.num_image_only
    close(losses["cross_entropy"], float(np.mean(samples)))


def test_generated_masks_should_agree_with_those_predicted_from_the_generated_images() -> None:
    context = generator_context(CONFIG, MADE)
    image, mask_logits = context.fake.image.requires_grad_(), context.fake.mask_logits
    assert mask_logits is not None
    mask = mask_logits.requires_grad_().softmax(dim=1)
    context = replace(context, fake=replace(context.fake, mask=mask))
    losses = task(MADE, "segmentation").generator_losses(context, task_features(context, context.fake))
    generated = double(mask)[: context.num_image_only]
    predicted = predicted_masks(context.fake.image)[: context.num_image_only]
    close(losses["agreement"], -0.1 * float((generated * predicted).sum(axis=1).mean()))
    close(losses["distillation"], -0.2 * float((np.exp(predicted) * np.log(generated)).sum(axis=1).mean()))

    def reached(name: str) -> list[bool]:
        gradients = torch.autograd.grad(losses[name], [image, mask_logits], retain_graph=True, allow_unused=True)
        return [gradient is not None and bool(gradient.any()) for gradient in gradients]

    assert reached("agreement") == [True, True]
    assert reached("distillation") == [False, True]


def test_reconstruction_is_the_l1_distance_of_unaugmented_rows_and_the_divergence_from_the_prior() -> None:
    context = discriminator_context(CONFIG, MADE)
    losses = task(MADE, "reconstruction").discriminator_losses(context, discriminator_features(context))
    discriminator, plain = MADE.side.discriminator, context.plain
    assert 0 < len(plain) < context.num_image_only
    encoded = discriminator.heads["reconstruction"](
        discriminator.summary(discriminator.trunk(Canvas(context.batch.image[plain])))
    )
    mean, log_variance = double(encoded)[:, :4], double(encoded)[:, 4:]
    latent = mean + np.exp(log_variance / 2) * double(context.posterior_noise)
    decoded = MADE.generator(torch.from_numpy(latent).float(), Condition(context.condition.pooled[plain])).image
    variance = np.exp(log_variance)
    close(losses["kl"], 2e-4 * float((-0.5 * (1 + log_variance - mean**2 - variance)).sum(axis=1).mean()))
    close(losses["l1"], float(np.abs(double(decoded) - double(context.batch.image[plain])).mean()))


def test_the_generator_reconstructs_from_a_sample_of_the_posterior() -> None:
    context = generator_context(CONFIG, MADE)
    reconstruction = task(MADE, "reconstruction")
    latent, condition = reconstruction.generator_request(context, context.real_features)
    mean, log_variance = reconstruction.posterior(MADE.side.discriminator, [context.real_features[0][context.plain]])
    assert np.allclose(
        double(latent), double(mean) + np.exp(double(log_variance) / 2) * double(context.posterior_noise), atol=1e-5
    )
    assert not latent.requires_grad
    assert torch.equal(condition.pooled, context.condition.pooled[context.plain])
    canvas = Canvas(torch.rand(len(context.plain), 1, 8, 8))
    expected = np.abs(double(canvas.image) - double(context.batch.image[context.plain])).mean()
    close(reconstruction.canvas_losses(context, canvas)["l1"], float(expected))


def test_the_game_is_relativistic_row_by_row() -> None:
    context = discriminator_context(CONFIG, MADE)
    generation = task(MADE, "generation")
    real, fake = logits(context, context.real), logits(context, context.fake)
    d_losses = generation.discriminator_losses(context, discriminator_features(context))
    close(d_losses["adversarial"], softplus(fake - real).mean())
    context = generator_context(CONFIG, MADE)
    real, fake = logits(context, context.real), logits(context, context.fake)
    g_losses = generation.generator_losses(context, task_features(context, context.fake))
    close(g_losses["adversarial"], softplus(real - fake).mean())


def adversarial(real: Canvas, fake: Canvas) -> tuple[float, float]:
    """The discriminator's and the generator's loss of a pair of canvases."""
    generation = task(MADE, "generation")
    in_d = replace(discriminator_context(CONFIG, MADE), real=real, fake=fake)
    # with the conditions of the discriminator's step
    in_g = replace(
        generator_context(CONFIG, MADE),
        condition=in_d.condition,
        real_features=MADE.side.discriminator.trunk(real),
        real_judged=MADE.side.discriminator.trunk(real)[0],
    )
    d_loss = generation.discriminator_losses(in_d, discriminator_features(in_d))["adversarial"]
    return d_loss.item(), generation.generator_losses(in_g, task_features(in_g, fake))["adversarial"].item()


def test_equal_samples_have_the_loss_of_a_coin_toss() -> None:
    real = discriminator_context(CONFIG, MADE).real
    assert adversarial(real, real) == pytest.approx((np.log(2), np.log(2)), rel=1e-6)


def test_the_players_swap_their_losses_when_real_and_generated_are_swapped() -> None:
    context = discriminator_context(CONFIG, MADE)
    assert adversarial(context.real, context.fake) == pytest.approx(
        adversarial(context.fake, context.real)[::-1], rel=1e-5
    )
    difference = (logits(context, context.fake) - logits(context, context.real)).mean()
    assert np.subtract(*adversarial(context.real, context.fake)) == pytest.approx(difference, rel=1e-4)


def penalized_context(**settings: Any) -> tuple[Networks, DiscriminatorContext, Tensor]:
    """A double-precision context with all rows penalized, some with masks; and its R1 + R2, by double backward."""
    config = toy.config(
        tasks__generation__penalty_every=1, tasks__generation__gamma=3.0, tasks__generation__joint_every=2, **settings
    )
    made = networks(config)
    made.side.double()
    context = discriminator_context(config, made)
    assert context.fake is not None
    real, fake = (
        canvas.map(lambda x: x.double() if x.is_floating_point() else x) for canvas in (context.real, context.fake)
    )
    context = replace(context, condition=Condition(context.condition.pooled.double()), real=real, fake=fake)
    exact = torch.zeros((), dtype=torch.float64)
    for canvas in (real, fake):
        assert canvas.mask is not None
        seen = [canvas.image.clone().requires_grad_(True), canvas.mask.clone().requires_grad_(True)]
        features = made.side.discriminator.trunk(Canvas(seen[0], seen[1], canvas.shown))
        summary = made.side.discriminator.summary(features)
        head = made.side.discriminator.heads["generation"]
        logit = ((summary @ head.embed.weight.T) * (head.direction + context.condition.pooled)).sum() / 8**0.5  # type: ignore[union-attr,operator]
        exact += sum(g.square().sum() for g in torch.autograd.grad(logit, seen, create_graph=True)) / 16  # type: ignore[arg-type]
    head.float()  # as in training, where the logit is computed in fp32
    return made, context, exact


@pytest.mark.parametrize("sigma", [0.01, 0.003])
def test_the_finite_difference_penalty_is_on_average_the_exact_one(sigma: float) -> None:
    """For small sigma, E[(D(x + sigma e) - D(x))^2] / sigma^2 is the squared gradient norm: R1 + R2."""
    made, context, exact = penalized_context()
    context = replace(context, penalty_sigma=sigma)
    penalties, generation = [], task(made, "generation")
    with torch.no_grad():
        for seed in range(300):
            penalties.append(generation.discriminator_losses(context, discriminator_features(context, seed))["penalty"])
    found = torch.stack(penalties).double()
    error = 4.5 * found.std() / len(found) ** 0.5  # of the mean over seeds; about 7 % of it
    assert error < 0.1 * exact.item() * 1.5
    assert abs(found.mean() - 1.5 * exact.item()) < error + 0.01 * exact.item()


def test_the_exact_penalty_is_exact_and_so_are_its_gradients() -> None:
    made, context, exact = penalized_context(tasks__generation__penalty="exact")
    losses = task(made, "generation").discriminator_losses(context, task_features(context, context.real, context.fake))
    assert losses["penalty"].item() == pytest.approx(1.5 * exact.item(), rel=1e-5)
    parameters = list(made.side.discriminator.descent.parameters())
    found, expected = (
        torch.autograd.grad(value, parameters, allow_unused=True) for value in (losses["penalty"], 1.5 * exact)
    )
    assert any(gradient is not None and gradient.abs().max() > 1 for gradient in expected)
    for one, other in zip(found, expected, strict=True):
        assert one is other is None or torch.allclose(one, other, rtol=1e-4, atol=1e-4)  # type: ignore[arg-type]


def test_the_exact_penalty_of_no_rows_is_0() -> None:
    """A worker may have no penalized row in its part of the batch."""
    config = toy.config(tasks__generation__penalty="exact")
    context = discriminator_context(config, MADE)
    context = replace(context, penalized=context.penalized[:0])
    assert context.fake is not None
    generation = task(networks(config), "generation")
    assert (
        generation.discriminator_losses(context, task_features(context, context.real, context.fake))["penalty"].item()
        == 0
    )


@pytest.mark.parametrize("name", ["classification", "segmentation"])
def test_without_a_label_in_the_batch_the_gradient_is_exactly_0(name: str) -> None:
    context = discriminator_context(CONFIG, MADE, unlabeled(toy.batch(0, 16)))
    MADE.side.zero_grad(set_to_none=True)
    losses = task(MADE, name).discriminator_losses(context, discriminator_features(context))
    sum(losses.values()).backward()
    assert all(loss.item() == 0 for loss in losses.values())
    head = list(MADE.side.discriminator.heads[name].parameters())
    assert all(p.grad is not None for p in head)  # a gradient exists, so that all workers reduce the same ones
    assert all(p.grad is None or not p.grad.any() for p in MADE.side.parameters())


@pytest.mark.parametrize("name", ["generation", "classification", "segmentation", "reconstruction"])
@pytest.mark.parametrize("cuts", [(4, 8, 12), (8,)])
def test_the_parts_of_a_batch_average_to_the_whole(name: str, cuts: tuple[int, ...]) -> None:
    """Parts of a global batch, averaged as engines average gradients, give the mean over all samples with the label."""
    config = toy.config(augment__probability=0.4)
    whole = toy.batch(0, 16)

    def losses(begin: int, end: int) -> dict[str, float]:
        context = discriminator_context(config, MADE, whole.rows(slice(begin, end)))
        # random canvases and noise would differ from part to part
        fake = Canvas(-context.real.image, context.real.mask, context.real.shown)
        context = replace(context, fake=fake, posterior_noise=torch.zeros_like(context.posterior_noise))
        found = task(MADE, name).discriminator_losses(context, discriminator_features(context))
        return {key: value.item() for key, value in found.items() if key != "penalty"}  # its noise is random

    edges = [0, *cuts, 16]
    parts = [losses(a, b) for a, b in zip(edges, edges[1:], strict=False)]
    mean = {key: float(np.mean([part[key] for part in parts])) for key in parts[0]}
    assert mean == pytest.approx(losses(0, 16), rel=1e-4)
