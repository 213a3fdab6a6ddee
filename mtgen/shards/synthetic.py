"""Scenes: colored things on a background, with everything that is known about them. What recipes that draw have in common."""

import math
import re
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import AfterValidator, Field, ValidationInfo
from scipy.ndimage import binary_dilation

from mtgen.config import ConfigSection
from mtgen.shards.make import Recipe
from mtgen.shards.write import Sample

THING_COLORS = {
    "red": (214, 30, 40),
    "orange": (245, 130, 15),
    "yellow": (250, 218, 30),
    "green": (30, 145, 60),
    "cyan": (40, 205, 215),
    "blue": (35, 75, 215),
    "purple": (125, 40, 165),
    "pink": (250, 130, 190),
    "brown": (115, 65, 25),
    "black": (15, 15, 15),
    "white": (240, 240, 240),
}
BLACK_INK = {"": (15, 15, 15)}
"""The one color of inverted things, which captions do not speak of."""
CONTRAST = 3.0
"""Least contrast of a thing against its background (WCAG 2.1, success criterion 1.4.11: 3:1 for graphics)."""
MIN_COLOR_CHOICE = 3
"""Colors that a background has to leave to choose from."""
MIN_PIXELS_PER_THING = 16
"""Pixels of canvas side that each thing needs to be told apart."""


def _fits(most: int, info: ValidationInfo) -> int:
    resolution = info.data.get("resolution")
    needed = MIN_PIXELS_PER_THING * math.ceil(math.sqrt(most))
    if resolution is not None and resolution < needed:
        raise ValueError(f"so many need a resolution of at least {needed} to be readable, and it is {resolution}")
    return most


Style = Literal["color", "gray", "inverted"]
"""Colors that differ from thing to thing; white on black, in one channel; black on a light textured background."""

Most = Annotated[int, Field(ge=1, le=9), AfterValidator(_fits)]
"""An option: how many things a scene has at most."""


class SceneOptions(ConfigSection):
    """What every recipe that draws scenes can be asked for."""

    resolution: int = Field(32, ge=MIN_PIXELS_PER_THING, le=1024, description="side of the images, pixels")
    train: int = Field(20_000, ge=1, description="samples to train on")
    test: int = Field(2_000, ge=0, description="samples to evaluate on; 0: no such split")
    background: Literal["plain", "textured"] = Field("plain", description="one color, or clouds of it with grain")


@dataclass
class SceneObject:
    """Something to place: its class, and how to draw it.

    Attributes:
        label: class number.
        draw: pixels of its longer side -> `[h,w]` uint8 coverage, trimmed to the thing.
    """

    label: int
    draw: Callable[[int], np.ndarray]


def _layout(rng: Random, things: list[SceneObject], resolution: int) -> list[tuple[np.ndarray, int, int]]:
    """Coverage, left and top of each thing; at least a pixel of background is between two of them."""
    shrink = 1 / math.sqrt(len(things))
    while True:
        free = np.ones((resolution, resolution), bool)
        placed = []
        for thing in things:
            coverage = thing.draw(max(2, round(rng.uniform(0.7, 0.95) * shrink * resolution)))
            height, width = coverage.shape
            for _ in range(30):
                left, top = rng.randint(0, resolution - width), rng.randint(0, resolution - height)
                if free[top : top + height, left : left + width][coverage > 0].all():
                    spot = np.zeros_like(free)
                    spot[top : top + height, left : left + width] = coverage > 0
                    free &= ~binary_dilation(spot, np.ones((3, 3)))
                    placed.append((coverage, left, top))
                    break
        if len(placed) == len(things):
            return placed
        shrink *= 0.95


def luminance(colors: np.ndarray) -> np.ndarray:
    """`[..,3]` sRGB, 0 to 255 -> `[..]` relative luminance, 0 to 1 (WCAG 2.1)."""
    c = colors / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ np.array([0.2126, 0.7152, 0.0722])


def _noise(rng: Random, cells: int, resolution: int, amplitude: float) -> np.ndarray:
    """`[H,W,3]` smooth random offsets in [-amplitude, amplitude], `cells` of them a side."""
    grid = np.frombuffer(rng.randbytes(cells * cells * 3), np.uint8).reshape(cells, cells, 3)
    smooth = np.asarray(Image.fromarray(grid).resize((resolution, resolution), Image.Resampling.BILINEAR))
    return (smooth / 127.5 - 1) * amplitude


def _background(rng: Random, resolution: int, kind: str) -> np.ndarray:
    """`[H,W,3]` or `[1,1,3]` float, 0 to 255: dark or light, so that something stands out from it."""
    tone = rng.uniform(0, 70) if rng.random() < 0.5 else rng.uniform(190, 255)
    base = np.array([[[tone + rng.uniform(-40, 40) for _ in range(3)]]])
    if kind == "textured":
        base = (
            base
            + _noise(rng, 4, resolution, 24)
            + _noise(rng, 8, resolution, 12)
            + _noise(rng, resolution, resolution, 6)
        )
    return base.clip(0, 255)


def _palette(
    rng: Random, count: int, resolution: int, background: str, inks: dict[str, tuple[int, int, int]]
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names `[count]` and colors `[count,3]` of things, and a background whose every pixel they stand out from."""
    colors = np.array([[channel + rng.uniform(-12, 12) for channel in color] for color in inks.values()]).clip(0, 255)
    light = luminance(colors) + 0.05
    while True:
        ground = _background(rng, resolution, background)
        behind = luminance(ground) + 0.05
        fitting = np.flatnonzero((light >= CONTRAST * behind.max()) | (light <= behind.min() / CONTRAST))
        if len(fitting) >= min(MIN_COLOR_CHOICE, len(inks)):
            chosen = [int(rng.choice(fitting)) for _ in range(count)]
            return [list(inks)[i] for i in chosen], colors[chosen], ground


def _caption(names: list[str]) -> str:
    """ "a red seven", "a blue two and an orange nine", "a red one, a blue two and an orange nine"."""
    *first, last = [("an " if re.match("[aei]|o(?!ne)", name) else "a ") + name for name in names]
    return f"{', '.join(first)} and {last}" if first else last


def scene(
    key: str,
    rng: Random,
    things: list[SceneObject],
    classes: list[str],
    resolution: int,
    threshold: int,
    background: str,
    style: Style = "color",
) -> Sample:
    """Place, color and describe `things`.

    Args:
        key: the sample's name.
        rng: where every choice comes from.
        things: what to draw, one or more.
        classes: their names, by class number.
        resolution: side of the image, pixels.
        threshold: a pixel belongs to a thing where its coverage (0 to 255) is above this.
        background: "plain" or "textured"; inverted things lie on a textured one.
        style: see `Style`.
    """
    placed = _layout(rng, things, resolution)
    gray = style == "gray"
    if gray:
        color_names, colors, ground = [""] * len(things), np.full((len(things), 1), 255.0), np.zeros((1, 1, 1))
    elif style == "inverted":
        color_names, colors, ground = _palette(rng, len(things), resolution, "textured", BLACK_INK)
    else:
        color_names, colors, ground = _palette(rng, len(things), resolution, background, THING_COLORS)
    image = np.broadcast_to(ground, (resolution, resolution, ground.shape[2])).copy()
    mask = np.zeros((resolution, resolution), np.uint8)
    boxes = []
    for thing, color, (coverage, left, top) in zip(things, colors, placed, strict=True):
        place = np.s_[top : top + coverage.shape[0], left : left + coverage.shape[1]]
        image[place] += (color - image[place]) * (coverage[..., None] / 255)
        inside = coverage > threshold
        mask[place][inside] = thing.label + 1
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        boxes.append([left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1, thing.label])
    order = sorted(range(len(things)), key=lambda i: boxes[i][0])  # captions and boxes go from left to right
    return Sample(
        key=key,
        image=np.rint(image).astype(np.uint8).squeeze(2) if gray else np.rint(image).astype(np.uint8),
        label=things[0].label if len(things) == 1 else None,
        mask=mask,
        boxes=[boxes[i] for i in order],
        labels=sorted({thing.label for thing in things}),
        caption=_caption([f"{color_names[i]} {classes[things[i].label]}".strip() for i in order]),
    )


class SceneRecipe(Recipe):
    """A recipe whose samples are scenes: sample number i of a split is a function of the seed, the split and i alone.

    Attributes:
        variant: where it differs, scenes have nothing in common, whatever the seed.
    """

    variant: str = ""

    @property
    def splits(self) -> dict[str, int]:
        """Split -> number of samples."""
        return {split: count for split, count in (("train", self.options.train), ("test", self.options.test)) if count}

    def make(self, split: str, number: int) -> Sample:
        """Sample `number` of a split."""
        return self.sample(split, f"{split}{number:07d}", Random(f"{self.seed}/{split}/{number}{self.variant}"))

    @abstractmethod
    def sample(self, split: str, key: str, rng: Random) -> Sample:
        """One sample; every choice comes from `rng`."""
