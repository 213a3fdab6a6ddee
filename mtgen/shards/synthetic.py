"""Synthetic scenes of colored objects on a background, with all labels; the common part of recipes that draw."""

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
from mtgen.shards.recipe import Recipe
from mtgen.shards.write import Sample

OBJECT_COLORS = {
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
"""The single color of the style "inverted"; captions do not mention it."""
CONTRAST = 3.0
"""Smallest contrast of an object and its background (WCAG 2.1, success criterion 1.4.11: 3:1 for graphics)."""
MIN_COLOR_CHOICE = 3
"""Number of colors that have to contrast with a background."""
MIN_PIXELS_PER_OBJECT = 16
"""Side of the area that an object needs to be recognizable, pixels."""


def _fits(limit: int, info: ValidationInfo) -> int:
    resolution = info.data.get("resolution")
    needed = MIN_PIXELS_PER_OBJECT * math.ceil(math.sqrt(limit))
    if resolution is not None and resolution < needed:
        raise ValueError(f"{limit} objects need a resolution of at least {needed}, it is {resolution}")
    return limit


Style = Literal["color", "gray", "inverted"]
"""Objects in different colors; white on black, in one channel; black on a light textured background."""

ObjectLimit = Annotated[int, Field(ge=1, le=9), AfterValidator(_fits)]
"""Type of an option: the largest number of objects in a scene."""


class SceneOptions(ConfigSection):
    """Options of all recipes that draw scenes."""

    resolution: int = Field(32, ge=MIN_PIXELS_PER_OBJECT, le=1024, description="side of the images, pixels")
    train: int = Field(20_000, ge=1, description="number of training samples")
    val: int = Field(0, ge=0, description="number of validation samples; 0: training holds some of its own out")
    test: int = Field(2_000, ge=0, description="number of test samples; 0: no test split")
    background: Literal["plain", "textured"] = Field(
        "plain", description="a single color, or smooth noise around it with grain"
    )


@dataclass
class SceneObject:
    """An object to be placed: its class and how to draw it.

    Attributes:
        label: class number.
        draw: length of its longer side, pixels -> coverage `[h,w]` uint8, cropped to the object.
    """

    label: int
    draw: Callable[[int], np.ndarray]


def _layout(rng: Random, objects: list[SceneObject], resolution: int) -> list[tuple[np.ndarray, int, int]]:
    """Coverage, left and top of each object; any two are at least one pixel apart."""
    shrink = 1 / math.sqrt(len(objects))
    while True:
        free = np.ones((resolution, resolution), bool)
        placed = []
        for item in objects:
            coverage = item.draw(max(2, round(rng.uniform(0.7, 0.95) * shrink * resolution)))
            height, width = coverage.shape
            for _ in range(30):
                left, top = rng.randint(0, resolution - width), rng.randint(0, resolution - height)
                if free[top : top + height, left : left + width][coverage > 0].all():
                    occupied = np.zeros_like(free)
                    occupied[top : top + height, left : left + width] = coverage > 0
                    free &= ~binary_dilation(occupied, np.ones((3, 3)))
                    placed.append((coverage, left, top))
                    break
        if len(placed) == len(objects):
            return placed
        shrink *= 0.95


def luminance(colors: np.ndarray) -> np.ndarray:
    """sRGB `[..,3]`, 0 to 255 -> relative luminance `[..]`, 0 to 1 (WCAG 2.1)."""
    c = colors / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ np.array([0.2126, 0.7152, 0.0722])


def _noise(rng: Random, cells: int, resolution: int, amplitude: float) -> np.ndarray:
    """`[H,W,3]`: smooth random offsets in [-amplitude, amplitude], interpolated from a grid of `cells` x `cells`."""
    grid = np.frombuffer(rng.randbytes(cells * cells * 3), np.uint8).reshape(cells, cells, 3)
    smooth = np.asarray(Image.fromarray(grid).resize((resolution, resolution), Image.Resampling.BILINEAR))
    return (smooth / 127.5 - 1) * amplitude


def _background(rng: Random, resolution: int, kind: str) -> np.ndarray:
    """`[H,W,3]` or `[1,1,3]` float, 0 to 255: dark or light, so that some colors contrast with it."""
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
    rng: Random, count: int, resolution: int, background: str, palette: dict[str, tuple[int, int, int]]
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names `[count]` and colors `[count,3]` of objects, and a background that contrasts with them in every pixel."""
    colors = np.array([[channel + rng.uniform(-12, 12) for channel in color] for color in palette.values()])
    colors = colors.clip(0, 255)
    foreground = luminance(colors) + 0.05
    while True:
        pixels = _background(rng, resolution, background)
        behind = luminance(pixels) + 0.05
        suitable = np.flatnonzero((foreground >= CONTRAST * behind.max()) | (foreground <= behind.min() / CONTRAST))
        if len(suitable) >= min(MIN_COLOR_CHOICE, len(palette)):
            chosen = [int(rng.choice(suitable)) for _ in range(count)]
            return [list(palette)[i] for i in chosen], colors[chosen], pixels


def _caption(names: list[str]) -> str:
    """ "a red seven", "a blue two and an orange nine", "a red one, a blue two and an orange nine"."""
    *first, last = [("an " if re.match("[aei]|o(?!ne)", name) else "a ") + name for name in names]
    return f"{', '.join(first)} and {last}" if first else last


def scene(
    key: str,
    rng: Random,
    objects: list[SceneObject],
    classes: list[str],
    resolution: int,
    threshold: int,
    background: str,
    style: Style = "color",
) -> Sample:
    """Place, color and describe objects.

    Args:
        key: key of the sample.
        rng: source of all random choices.
        objects: what to draw, at least one.
        classes: names of the classes, by number.
        resolution: side of the image, pixels.
        threshold: a pixel belongs to an object if its coverage (0 to 255) is above this.
        background: "plain" or "textured"; the style "inverted" always has a textured one.
        style: see `Style`.
    """
    placed = _layout(rng, objects, resolution)
    gray = style == "gray"
    if gray:
        color_names, colors, pixels = [""] * len(objects), np.full((len(objects), 1), 255.0), np.zeros((1, 1, 1))
    elif style == "inverted":
        color_names, colors, pixels = _palette(rng, len(objects), resolution, "textured", BLACK_INK)
    else:
        color_names, colors, pixels = _palette(rng, len(objects), resolution, background, OBJECT_COLORS)
    image = np.broadcast_to(pixels, (resolution, resolution, pixels.shape[2])).copy()
    mask = np.zeros((resolution, resolution), np.uint8)
    boxes = []
    for item, color, (coverage, left, top) in zip(objects, colors, placed, strict=True):
        area = np.s_[top : top + coverage.shape[0], left : left + coverage.shape[1]]
        image[area] += (color - image[area]) * (coverage[..., None] / 255)
        inside = coverage > threshold
        mask[area][inside] = item.label + 1
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        boxes.append([left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1, item.label])
    order = sorted(range(len(objects)), key=lambda i: boxes[i][0])  # captions and boxes are ordered from left to right
    return Sample(
        key=key,
        image=np.rint(image).astype(np.uint8).squeeze(2) if gray else np.rint(image).astype(np.uint8),
        label=objects[0].label if len(objects) == 1 else None,
        mask=mask,
        boxes=[boxes[i] for i in order],
        labels=sorted({item.label for item in objects}),
        caption=_caption([f"{color_names[i]} {classes[objects[i].label]}".strip() for i in order]),
    )


class SceneRecipe(Recipe):
    """A recipe whose samples are scenes; sample i of a split is a function of the seed, the split and i alone.

    Attributes:
        variant: part of the seed; recipes with different variants never make the same scene.
    """

    variant: str = ""

    @property
    def splits(self) -> dict[str, int]:
        """Split -> number of samples."""
        counts = {"train": self.options.train, "val": self.options.val, "test": self.options.test}
        return {split: count for split, count in counts.items() if count}

    def make(self, split: str, number: int) -> Sample:
        """Make sample `number` of a split."""
        return self.sample(split, f"{split}{number:07d}", Random(f"{self.seed}/{split}/{number}{self.variant}"))

    @abstractmethod
    def sample(self, split: str, key: str, rng: Random) -> Sample:
        """Make one sample, with all random choices from `rng`."""
