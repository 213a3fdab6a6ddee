"""Augmentation: one affine map per sample, for image and mask alike, a function of its position."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from mtgen.config import AugmentConfig
from mtgen.schema import Canvas
from mtgen.training.augment import Warp, is_augmented
from mtgen.utils import counter_rng

SIDE = 16


def warp(
    position: Tensor,
    settings: AugmentConfig | None = None,
    purpose: str = "real",
    which: str = "real",
    size: tuple[int, int] = (SIDE, SIDE),
) -> Warp:
    settings = settings or AugmentConfig(probability=0.6, shift=0.2, rotate=40, scale=0.3)
    return Warp.draw(settings, settings.probability, 3, size, position, purpose, which)


def images(rows: int, channels: int = 2) -> Tensor:
    return torch.rand(rows, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def by_scipy(image: Tensor, theta: Tensor, order: int) -> Tensor:
    """One channel `[H,W]` warped by the same map with scipy.

    `theta` maps centered output coordinates (x, y), in units of half a side, to input coordinates.
    """
    turn = theta[:, :2].double().numpy()[::-1, ::-1]  # (row, column) instead of (x, y)
    center, move = np.full(2, (SIDE - 1) / 2), theta[:, 2].double().numpy()[::-1] * SIDE / 2
    return torch.from_numpy(
        ndimage.affine_transform(
            image.double().numpy(), turn, offset=center - turn @ center + move, order=order, mode="nearest"
        )
    )


def test_images_equal_scipys_bilinear_map() -> None:
    position = torch.arange(40)
    change, x = warp(position), images(40)
    found = change(x)
    for row, theta in zip(change.rows.tolist(), change.theta, strict=True):
        for channel in range(2):
            assert torch.allclose(found[row, channel].double(), by_scipy(x[row, channel], theta, 1), atol=1e-4)


def test_a_rotation_acts_on_the_pixels_of_images_that_are_not_square() -> None:
    position, tall, wide = torch.arange(40), 12, 20
    square, change = warp(position), warp(position, size=(tall, wide))
    x = torch.rand(40, 1, tall, wide, generator=torch.Generator().manual_seed(0))
    found, middle = change(x), np.array([(tall - 1) / 2, (wide - 1) / 2])
    for row, theta, as_square in zip(change.rows.tolist(), change.theta.double(), square.theta.double(), strict=True):
        turn = as_square[:, :2].numpy()[::-1, ::-1]  # of a square image, (row, column): a rotation and a change of size
        move = theta[:, 2].numpy()[::-1] * np.array([tall, wide]) / 2
        expected = ndimage.affine_transform(
            x[row, 0].double().numpy(), turn, offset=middle - turn @ middle + move, order=1, mode="nearest"
        )
        assert torch.allclose(found[row, 0].double(), torch.from_numpy(expected), atol=1e-4)


def test_masks_equal_scipys_nearest_map_of_the_same_geometry() -> None:
    position = torch.arange(40)
    mask = torch.randint(0, 256, (40, SIDE, SIDE), generator=torch.Generator().manual_seed(1))
    change = warp(position)
    found = change.mask(mask)
    assert found.dtype == mask.dtype
    for row, theta in zip(change.rows.tolist(), change.theta, strict=True):
        equal = found[row] == by_scipy(mask[row], theta, 0).round().long()
        assert equal.double().mean() > 0.99  # halfway between two pixels either is right


def test_the_maps_fill_their_configured_limits() -> None:
    """The shift, rotation and scale of every theta."""
    change = warp(torch.arange(4000))
    a, b, c, d = change.theta[:, 0, 0], change.theta[:, 0, 1], change.theta[:, 1, 0], change.theta[:, 1, 1]
    assert torch.allclose(a, d)
    assert torch.allclose(b, -c)
    limits = {"scale": ((a.square() + c.square()).sqrt() - 1, 0.3), "rotate": (torch.atan2(c, a), math.radians(40))}
    limits |= {"x": (change.theta[:, 0, 2] / 2, 0.2), "y": (change.theta[:, 1, 2] / 2, 0.2)}
    for value, most in limits.values():
        assert float(value.abs().max()) <= most * 1.0001
        assert float(value.max()) > 0.98 * most
        assert float(value.min()) < -0.98 * most
        assert (
            abs(float(value.mean())) < 4.5 * most * (3 * len(value)) ** -0.5
        )  # uniform: standard deviation most / sqrt(3)


def test_only_augmented_rows_change() -> None:
    position, x = torch.arange(60), images(60)
    change = warp(position)
    same = (change(x) == x).flatten(1).all(dim=1)
    assert torch.equal(same, ~change.changed)
    assert 0 < int(same.sum()) < 60


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.6])
def test_the_fraction_of_augmented_rows_is_the_probability(probability: float) -> None:
    n = 40_000
    fraction = float(is_augmented(probability, 0, "real", torch.arange(n)).double().mean())
    assert abs(fraction - probability) <= 4.5 * (probability * (1 - probability) / n) ** 0.5


def test_probability_0_returns_the_input_itself() -> None:
    x = images(8)
    assert warp(torch.arange(8), AugmentConfig(probability=0))(x) is x


def test_a_sample_is_augmented_the_same_way_in_any_batch() -> None:
    position, x = torch.arange(100, 140), images(40)
    chosen = torch.tensor([39, 3, 17, 4])
    assert torch.allclose(warp(position)(x)[chosen], warp(position[chosen])(x[chosen]), atol=1e-6)


def test_real_and_generated_samples_are_augmented_independently() -> None:
    position = torch.arange(20_000)
    real, fake = is_augmented(0.6, 0, "real", position), is_augmented(0.6, 0, "generator fake", position)
    both = torch.stack([real, fake]).double()
    assert abs(float(torch.corrcoef(both)[0, 1])) < 4.5 * len(position) ** -0.5


def test_a_mask_moves_with_its_image() -> None:
    """A mask that is a copy of the image stays one."""
    x = images(20, 1)
    canvas = Canvas(x, torch.cat([x, 1 - x], dim=1), torch.ones(20, dtype=torch.bool))
    moved = warp(torch.arange(20)).canvas(canvas)
    assert moved.mask is not None
    assert torch.equal(moved.mask[:, :1], moved.image)
    assert torch.allclose(moved.mask.sum(dim=1), torch.ones(20, SIDE, SIDE), atol=1e-5)
    assert moved.shown is canvas.shown


def test_gradients_pass_through_to_every_row() -> None:
    position, x = torch.arange(12), images(12, 1).double().requires_grad_(True)
    change = warp(position)
    direction = counter_rng.normal(0, "direction", position, (1, SIDE, SIDE)).double()
    (change(x) * direction).sum().backward()
    step = 1e-2
    # the map is linear, so the difference is exact up to rounding in float32
    moved = (change((x + step * direction).detach()) - change(x.detach())) / step
    assert x.grad is not None
    by_hand = (moved * direction).flatten(1).sum(dim=1)
    assert torch.allclose((x.grad * direction).flatten(1).sum(dim=1), by_hand, rtol=1e-3, atol=1e-2)
    assert torch.equal(x.grad[~change.changed], direction[~change.changed])
