"""Every task's losses against the formula written down again, in numpy and in double precision, sample by sample."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers import toy
from helpers.scenes import discriminator_views, networks, scene, task, unlabeled, views
from scipy.special import log_softmax
from torch import Tensor

from mtgen.config import TASKS
from mtgen.models.model import Networks
from mtgen.schema import IGNORE_INDEX, Canvas, Condition
from mtgen.tasks.base import StepContext

CONFIG = toy.config(augment__probability=0.4, conditions__class={"probability": 0.5})
MADE = networks(CONFIG)


def double(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x)


def logits(laid_out: StepContext, canvas: Canvas) -> np.ndarray:
    """The relativistic logit of every row, by its definition: <e(x), v + c> / sqrt(d)."""
    head = MADE.side.discriminator.heads["generation"]
    summary = double(MADE.side.discriminator.summary(MADE.side.discriminator.trunk(canvas)))
    embedded = summary @ double(head.embed.weight).T  # type: ignore[union-attr,arg-type]
    return (embedded * (double(head.direction) + double(laid_out.condition.pooled))).sum(1) / np.sqrt(8)  # type: ignore[arg-type]


def close(found: Tensor, expected: float) -> None:
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_every_task_is_specified_here() -> None:
    here = ["classification", "generation", "reconstruction", "segmentation"]
    assert (
        sorted([*here, "alignment", "detection", "tagging", "translation"]) == TASKS.names()
    )  # those have files of their own


def test_classification_is_the_mean_cross_entropy_of_labeled_reading_rows() -> None:
    laid_out = scene(CONFIG, MADE)
    losses = task(MADE, "classification").discriminator_losses(laid_out, discriminator_views(laid_out))
    head = MADE.side.discriminator.heads["classification"]
    read = log_softmax(
        double(head(MADE.side.discriminator.summary(MADE.side.discriminator.trunk(Canvas(laid_out.batch.image))))),
        axis=1,
    )
    rows = [row for row in range(laid_out.reading) if laid_out.batch.present["class"][row]]
    assert 0 < len(rows) < laid_out.reading
    close(losses["cross_entropy"], -np.mean([read[row, laid_out.batch.label[row]] for row in rows]))


def test_classes_of_generated_images_should_be_those_that_were_asked_for() -> None:
    laid_out = scene(CONFIG, MADE)
    losses = task(MADE, "classification").generator_losses(laid_out, views(laid_out, laid_out.fake))
    head = MADE.side.discriminator.heads["classification"]
    read = log_softmax(
        double(head(MADE.side.discriminator.summary(MADE.side.discriminator.trunk(Canvas(laid_out.fake.image))))),
        axis=1,
    )
    rows = [row for row in range(laid_out.reading) if laid_out.batch.present["class"][row]]
    asked = [row for row in rows if laid_out.prompt.given["class"][row]]  # of the others nobody knows the class
    assert 0 < len(asked) < len(rows)
    close(losses["agreement"], -0.1 * float(sum(read[row, laid_out.batch.label[row]] for row in asked)) / len(rows))


def read_masks(image: Tensor) -> np.ndarray:
    discriminator = MADE.side.discriminator
    return log_softmax(
        double(discriminator.heads["segmentation"](discriminator.dense(discriminator.trunk(Canvas(image))))), axis=1
    )


def test_segmentation_is_a_mean_over_known_pixels_and_then_over_samples() -> None:
    batch = toy.batch(0, 16)
    batch.mask[::4, :5] = IGNORE_INDEX  # partly known
    laid_out = scene(CONFIG, MADE, batch)
    losses = task(MADE, "segmentation").discriminator_losses(laid_out, discriminator_views(laid_out))
    read, samples, known = read_masks(laid_out.batch.image), [], set()
    for row in range(laid_out.reading):
        pixels = [(i, j) for i in range(8) for j in range(8) if laid_out.batch.mask[row, i, j] != IGNORE_INDEX]
        if laid_out.batch.present["mask"][row]:
            known.add(len(pixels))
            samples.append(-np.mean([read[row, laid_out.batch.mask[row, i, j], i, j] for i, j in pixels]))
    assert known == {24, 64}
    assert len(samples) < laid_out.reading
    close(losses["cross_entropy"], float(np.mean(samples)))


def test_drawn_masks_should_agree_with_the_mask_that_is_read_in_the_drawn_image() -> None:
    laid_out = scene(CONFIG, MADE)
    image, mask = laid_out.fake.image, laid_out.fake.mask
    assert mask is not None
    for tensor in (image, mask):
        tensor.requires_grad_()
    losses = task(MADE, "segmentation").generator_losses(laid_out, views(laid_out, laid_out.fake))
    drawn, read = double(mask)[: laid_out.reading], read_masks(laid_out.fake.image)[: laid_out.reading]
    close(losses["agreement"], -0.1 * float((drawn * read).sum(axis=1).mean()))
    close(losses["distillation"], -0.2 * float((np.exp(read) * np.log(drawn.clip(1e-4))).sum(axis=1).mean()))

    def reached(name: str) -> list[bool]:
        slopes = torch.autograd.grad(losses[name], [image, mask], retain_graph=True, allow_unused=True)
        return [slope is not None and bool(slope.any()) for slope in slopes]

    assert reached("agreement") == [True, True]
    assert reached("distillation") == [False, True]


def test_reconstruction_is_the_l1_distance_of_unaugmented_rows_and_the_divergence_from_the_prior() -> None:
    laid_out = scene(CONFIG, MADE)
    losses = task(MADE, "reconstruction").discriminator_losses(laid_out, discriminator_views(laid_out))
    discriminator, plain = MADE.side.discriminator, laid_out.plain
    assert 0 < len(plain) < laid_out.reading
    read = discriminator.heads["reconstruction"](
        discriminator.summary(discriminator.trunk(Canvas(laid_out.batch.image[plain])))
    )
    mean, log_variance = double(read)[:, :4], double(read)[:, 4:]
    latent = mean + np.exp(log_variance / 2) * double(laid_out.noise)
    drawn = MADE.generator(torch.from_numpy(latent).float(), Condition(laid_out.condition.pooled[plain])).image
    variance = np.exp(log_variance)
    close(losses["kl"], 2e-4 * float((-0.5 * (1 + log_variance - mean**2 - variance)).sum(axis=1).mean()))
    close(losses["l1"], float(np.abs(double(drawn) - double(laid_out.batch.image[plain])).mean()))


def test_the_generator_reconstructs_from_a_sample_of_the_posterior() -> None:
    laid_out = scene(CONFIG, MADE)
    laid_out.real_features = MADE.side.discriminator.trunk(laid_out.real)
    reconstruction = task(MADE, "reconstruction")
    latent, condition = reconstruction.generator_request(laid_out)
    mean, log_variance = reconstruction.posterior(MADE.side.discriminator, [laid_out.real_features[0][laid_out.plain]])
    assert np.allclose(
        double(latent), double(mean) + np.exp(double(log_variance) / 2) * double(laid_out.noise), atol=1e-5
    )
    assert not latent.requires_grad
    assert torch.equal(condition.pooled, laid_out.condition.pooled[laid_out.plain])
    drawn = Canvas(torch.rand(len(laid_out.plain), 1, 8, 8))
    expected = np.abs(double(drawn.image) - double(laid_out.batch.image[laid_out.plain])).mean()
    close(reconstruction.canvas_losses(laid_out, drawn)["l1"], float(expected))


def test_the_game_is_relativistic_row_by_row() -> None:
    laid_out = scene(CONFIG, MADE)
    generation = task(MADE, "generation")
    real, fake = logits(laid_out, laid_out.real), logits(laid_out, laid_out.fake)
    close(
        generation.discriminator_losses(laid_out, discriminator_views(laid_out))["adversarial"],
        softplus(fake - real).mean(),
    )
    laid_out.real_features = MADE.side.discriminator.trunk(laid_out.real)
    close(
        generation.generator_losses(laid_out, views(laid_out, laid_out.fake))["adversarial"],
        softplus(real - fake).mean(),
    )


def adversarial(real: Canvas, fake: Canvas) -> tuple[float, float]:
    """The discriminator's and the generator's loss of a pair of canvases."""
    laid_out, generation = scene(CONFIG, MADE), task(MADE, "generation")
    laid_out.real, laid_out.fake = real, fake
    laid_out.real_features = MADE.side.discriminator.trunk(real)
    d_loss = generation.discriminator_losses(laid_out, discriminator_views(laid_out))["adversarial"]
    return d_loss.item(), generation.generator_losses(laid_out, views(laid_out, fake))["adversarial"].item()


def test_equal_samples_are_a_draw() -> None:
    real = scene(CONFIG, MADE).real
    assert adversarial(real, real) == pytest.approx((np.log(2), np.log(2)), rel=1e-6)


def test_the_players_swap_their_losses_when_real_and_generated_are_swapped() -> None:
    laid_out = scene(CONFIG, MADE)
    assert adversarial(laid_out.real, laid_out.fake) == pytest.approx(
        adversarial(laid_out.fake, laid_out.real)[::-1], rel=1e-5
    )
    difference = (logits(laid_out, laid_out.fake) - logits(laid_out, laid_out.real)).mean()
    assert np.subtract(*adversarial(laid_out.real, laid_out.fake)) == pytest.approx(difference, rel=1e-4)


def penalized_scene(**settings: Any) -> tuple[Networks, StepContext, Tensor]:
    """A scene in double, every row penalized, some with their masks; and its R1 + R2, by double backward."""
    config = toy.config(
        tasks__generation__penalty_every=1, tasks__generation__gamma=3.0, tasks__generation__joint_every=2, **settings
    )
    made = networks(config)
    made.side.double()
    laid_out = scene(config, made)
    laid_out.condition = Condition(laid_out.condition.pooled.double())
    exact = torch.zeros((), dtype=torch.float64)
    for name in ("real", "fake"):
        canvas = getattr(laid_out, name).map(lambda x: x.double() if x.is_floating_point() else x)
        setattr(laid_out, name, canvas)
        seen = [canvas.image.clone().requires_grad_(True), canvas.mask.clone().requires_grad_(True)]
        features = made.side.discriminator.trunk(Canvas(seen[0], seen[1], canvas.shown))
        summary = made.side.discriminator.summary(features)
        head = made.side.discriminator.heads["generation"]
        logit = ((summary @ head.embed.weight.T) * (head.direction + laid_out.condition.pooled)).sum() / 8**0.5  # type: ignore[union-attr,operator]
        exact += sum(g.square().sum() for g in torch.autograd.grad(logit, seen, create_graph=True)) / 16  # type: ignore[arg-type]
    head.float()  # as in training, where the logit is computed in fp32
    return made, laid_out, exact


@pytest.mark.parametrize("sigma", [0.01, 0.003])
def test_the_finite_difference_penalty_is_on_average_the_exact_one(sigma: float) -> None:
    """For small noise, E[(D(x + sigma e) - D(x))^2] / sigma^2 is the squared gradient norm: here R1 + R2, by double backward."""
    made, laid_out, exact = penalized_scene()
    laid_out.sigma = sigma
    draws = []
    with torch.no_grad():
        for seed in range(300):
            draws.append(
                task(made, "generation").discriminator_losses(laid_out, discriminator_views(laid_out, seed))["penalty"]
            )
    found = torch.stack(draws).double()
    error = 4.5 * found.std() / len(found) ** 0.5  # of the mean over draws; about 7 % of it
    assert error < 0.1 * exact.item() * 1.5
    assert abs(found.mean() - 1.5 * exact.item()) < error + 0.01 * exact.item()


def test_the_exact_penalty_is_exact_and_so_are_its_gradients() -> None:
    made, laid_out, exact = penalized_scene(tasks__generation__penalty="exact")
    losses = task(made, "generation").discriminator_losses(laid_out, views(laid_out, laid_out.real, laid_out.fake))
    assert losses["penalty"].item() == pytest.approx(1.5 * exact.item(), rel=1e-5)
    parameters = list(made.side.discriminator.descent.parameters())
    found, expected = (
        torch.autograd.grad(value, parameters, allow_unused=True) for value in (losses["penalty"], 1.5 * exact)
    )
    assert any(gradient is not None and gradient.abs().max() > 1 for gradient in expected)
    for one, other in zip(found, expected, strict=True):
        assert one is other is None or torch.allclose(one, other, rtol=1e-4, atol=1e-4)  # type: ignore[arg-type]


def test_the_exact_penalty_of_no_rows_is_none() -> None:
    """A worker whose part of the batch has no penalized row."""
    config = toy.config(tasks__generation__penalty="exact")
    laid_out = scene(config, MADE)
    laid_out.penalized = laid_out.penalized[:0]
    generation = task(networks(config), "generation")
    assert (
        generation.discriminator_losses(laid_out, views(laid_out, laid_out.real, laid_out.fake))["penalty"].item() == 0
    )


@pytest.mark.parametrize("name", ["classification", "segmentation"])
def test_without_a_label_in_the_batch_there_is_exactly_no_gradient(name: str) -> None:
    laid_out = scene(CONFIG, MADE, unlabeled(toy.batch(0, 16)))
    MADE.side.zero_grad(set_to_none=True)
    losses = task(MADE, name).discriminator_losses(laid_out, discriminator_views(laid_out))
    sum(losses.values()).backward()
    assert all(loss.item() == 0 for loss in losses.values())
    head = list(MADE.side.discriminator.heads[name].parameters())
    assert all(p.grad is not None for p in head)  # there is a gradient, so that all workers reduce the same ones
    assert all(p.grad is None or not p.grad.any() for p in MADE.side.parameters())


@pytest.mark.parametrize("name", ["generation", "classification", "segmentation", "reconstruction"])
@pytest.mark.parametrize("cuts", [(4, 8, 12), (8,)])
def test_the_shares_of_a_batch_average_to_the_whole(name: str, cuts: tuple[int, ...]) -> None:
    """Equal shares of one global batch, averaged as engines average gradients, give the mean over all that carry the label."""
    config = toy.config(augment__probability=0.4)
    whole = toy.batch(0, 16)

    def losses(begin: int, end: int) -> dict[str, float]:
        laid_out = scene(config, MADE, whole.rows(slice(begin, end)))
        laid_out.fake = Canvas(
            -laid_out.real.image, laid_out.real.mask, laid_out.real.shown
        )  # random draws would differ by share
        laid_out.noise = torch.zeros_like(laid_out.noise)
        found = task(MADE, name).discriminator_losses(laid_out, discriminator_views(laid_out))
        return {key: value.item() for key, value in found.items() if key != "penalty"}  # whose noise is random

    edges = [0, *cuts, 16]
    shares = [losses(a, b) for a, b in zip(edges, edges[1:], strict=False)]
    mean = {key: float(np.mean([share[key] for share in shares])) for key in shares[0]}
    assert mean == pytest.approx(losses(0, 16), rel=1e-4)
