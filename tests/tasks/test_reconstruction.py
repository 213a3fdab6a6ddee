"""The divergence's free bits and warm-up, and the distance in features."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers import toy
from helpers.scenes import discriminator_views, networks, scene, task, views

from mtgen.schema import Canvas


def divergence(**settings: Any) -> tuple[float, np.ndarray, np.ndarray]:
    """The divergence's loss, that of every plain row and dimension by the formula, and the rows' positions."""
    config = toy.config(augment__probability=0.3, tasks__reconstruction={"kl": 1.0, **settings})
    made = networks(config)
    laid_out = scene(config, made, toy.batch(32, 32))
    found = task(made, "reconstruction").discriminator_losses(laid_out, discriminator_views(laid_out))["kl"].item()
    discriminator = made.side.discriminator
    read = discriminator.heads["reconstruction"](
        discriminator.summary(discriminator.trunk(Canvas(laid_out.batch.image[laid_out.plain])))
    )
    mean, log_variance = read.detach().double().numpy()[:, :4], read.detach().double().numpy()[:, 4:]
    own = -0.5 * (1 + log_variance - mean**2 - np.exp(log_variance))
    return found, own, laid_out.batch.position[laid_out.plain].numpy()


def test_free_bits_cost_nothing_less_and_everything_above() -> None:
    _, own, _ = divergence()
    free = float(np.median(own))
    found, own, _ = divergence(free_bits=free)
    assert found == pytest.approx(np.where(own < free, free, own).sum(axis=1).mean(), rel=1e-4)


def test_a_dimension_below_its_free_bits_has_no_gradient() -> None:
    config = toy.config(tasks__reconstruction={"kl": 1.0, "free_bits": 1e6})
    made = networks(config)
    laid_out = scene(config, made)
    task(made, "reconstruction").discriminator_losses(laid_out, discriminator_views(laid_out))["kl"].backward()
    assert all(p.grad is None or not p.grad.any() for p in made.side.parameters())


@pytest.mark.parametrize("warmup", [40, 1000, 10])
def test_the_divergence_rises_from_0_over_the_first_images(warmup: int) -> None:
    found, own, position = divergence(warmup=warmup)
    assert found == pytest.approx((own.sum(axis=1) * np.minimum(position / warmup, 1)).mean(), rel=1e-4)


def test_features_of_the_reconstruction_should_be_those_of_the_image() -> None:
    config = toy.config(augment__probability=0.3, tasks__reconstruction={"features": 0.5})
    made = networks(config)
    laid_out = scene(config, made, seen="generator")
    laid_out.real_features = made.side.discriminator.trunk(laid_out.real)
    drawn = Canvas(torch.rand(len(laid_out.plain), 1, 8, 8))
    reconstruction = task(made, "reconstruction")
    own = reconstruction.discriminator_part(laid_out, drawn)
    found = reconstruction.generator_losses(laid_out, views(laid_out, laid_out.fake, own=own))["features"]
    lowest = [
        made.side.discriminator.trunk(Canvas(x))[0].detach().double()
        for x in (drawn.image, laid_out.original.image[laid_out.plain])
    ]
    assert found.item() == pytest.approx(0.5 * float((lowest[0] - lowest[1]).square().mean()), rel=1e-4)
