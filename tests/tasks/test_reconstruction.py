"""Reconstruction: free bits and warm-up of the KL divergence, and the distance of features."""

from typing import Any

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

from mtgen.schema import Canvas


def divergence(**settings: Any) -> tuple[float, np.ndarray, np.ndarray]:
    """The KL loss, the divergence of each plain row and dimension by the formula, and the rows' positions."""
    config = toy.config(augment__probability=0.3, tasks__reconstruction={"kl": 1.0, **settings})
    made = networks(config)
    context = discriminator_context(config, made, toy.batch(32, 32))
    found = task(made, "reconstruction").discriminator_losses(context, discriminator_features(context))["kl"].item()
    discriminator = made.side.discriminator
    encoded = discriminator.heads["reconstruction"](
        discriminator.summary(discriminator.trunk(Canvas(context.batch.image[context.plain])))
    )
    mean, log_variance = np.split(encoded.detach().double().numpy(), 2, axis=1)
    own = -0.5 * (1 + log_variance - mean**2 - np.exp(log_variance))
    return found, own, context.batch.position[context.plain].numpy()


def test_the_divergence_of_a_dimension_is_at_least_its_free_bits() -> None:
    _, own, _ = divergence()
    free = float(np.median(own))
    found, own, _ = divergence(free_bits=free)
    assert found == pytest.approx(np.where(own < free, free, own).sum(axis=1).mean(), rel=1e-4)


def test_a_dimension_below_its_free_bits_has_no_gradient() -> None:
    config = toy.config(tasks__reconstruction={"kl": 1.0, "free_bits": 1e6})
    made = networks(config)
    context = discriminator_context(config, made)
    task(made, "reconstruction").discriminator_losses(context, discriminator_features(context))["kl"].backward()
    assert all(p.grad is None or not p.grad.any() for p in made.side.parameters())


@pytest.mark.parametrize("warmup", [40, 1000, 10])
def test_the_divergence_rises_from_0_over_the_first_images(warmup: int) -> None:
    found, own, position = divergence(warmup=warmup)
    assert found == pytest.approx((own.sum(axis=1) * np.minimum(position / warmup, 1)).mean(), rel=1e-4)


def test_features_of_the_reconstruction_should_be_those_of_the_image() -> None:
    config = toy.config(augment__probability=0.3, tasks__reconstruction={"features": 0.5})
    made = networks(config)
    context = generator_context(config, made)
    canvas = Canvas(torch.rand(len(context.plain), 1, 8, 8))
    reconstruction = task(made, "reconstruction")
    part = reconstruction.discriminator_part(context, canvas)
    features = task_features(context, context.fake, submitted=part)
    found = reconstruction.generator_losses(context, features)["features"]
    lowest = [
        made.side.discriminator.trunk(Canvas(x))[0].detach().double()
        for x in (canvas.image, context.original.image[context.plain])
    ]
    assert found.item() == pytest.approx(0.5 * float((lowest[0] - lowest[1]).square().mean()), rel=1e-4)
