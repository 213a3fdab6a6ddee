"""Color jitter equals Pillow's brightness, contrast and saturation; its factors are a function of (seed, position)."""

import numpy as np
import torch
from PIL import Image, ImageEnhance

from mtgen.data.color_jitter import color_jitter
from mtgen.utils import counter_rng


def images(rows: int, channels: int = 3) -> torch.Tensor:
    return (
        torch.randint(0, 256, (rows, channels, 12, 10), generator=torch.Generator().manual_seed(0)).float() / 127.5 - 1
    )


def test_it_equals_pillow_with_the_same_factors() -> None:
    position = np.arange(20)
    found = color_jitter(images(20), 0.4, 7, position)
    factors = 1 + 0.4 * (2 * counter_rng.uniform(7, "colour", torch.from_numpy(position), 3).double() - 1)
    for row, (brightness, contrast, saturation) in enumerate(factors.tolist()):
        picture = Image.fromarray(np.rint((images(20)[row].permute(1, 2, 0).numpy() + 1) * 127.5).astype(np.uint8))
        for kind, factor in (
            (ImageEnhance.Brightness, brightness),
            (ImageEnhance.Contrast, contrast),
            (ImageEnhance.Color, saturation),
        ):
            picture = kind(picture).enhance(factor)
        difference = (found[row].permute(1, 2, 0).numpy() + 1) * 127.5 - np.asarray(picture, np.float64)
        assert np.abs(difference).max() < 3.5, "Pillow rounds to whole gray levels after each of the three"


def test_colors_are_a_function_of_seed_and_position() -> None:
    same = images(1).expand(6, -1, -1, -1)
    found = color_jitter(same, 0.5, 1, np.arange(6))
    assert len({tuple(image.flatten().tolist()) for image in found}) == 6
    assert torch.equal(found[2:5], color_jitter(same[2:5], 0.5, 1, np.arange(2, 5)))
    assert not torch.equal(found, color_jitter(same, 0.5, 2, np.arange(6)))


def test_zero_strength_is_the_identity_and_gray_stays_gray() -> None:
    assert torch.allclose(color_jitter(images(4), 0.0, 1, np.arange(4)), images(4), atol=1e-6)
    gray = color_jitter(images(4, 1), 0.5, 1, np.arange(4))
    assert gray.shape == (4, 1, 12, 10) and gray.min() >= -1 and gray.max() <= 1
