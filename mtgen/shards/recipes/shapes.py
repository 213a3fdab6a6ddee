"""shapes: drawn figures with every component, sound included; nothing is downloaded."""

import math
from random import Random

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field

from mtgen.shards.make import RECIPES
from mtgen.shards.synthetic import Most, SceneObject, SceneOptions, SceneRecipe, scene
from mtgen.shards.write import Sample

Point = tuple[float, float]
SAMPLE_RATE_HZ = 8_000
"""Sound samples a second."""
SUPERSAMPLING = 8
"""Each pixel's coverage is the mean of so many points in each direction."""


def _arc(radius: float = 1.0, corners: int = 96, start: float = 0.0, center: Point = (0.0, 0.0)) -> list[Point]:
    """Corners of a regular polygon, the first one `start` degrees from the top."""
    turns = [math.radians(start) + 2 * math.pi * i / corners for i in range(corners)]
    return [(center[0] + radius * math.sin(t), center[1] - radius * math.cos(t)) for t in turns]


def _star() -> list[Point]:
    return [point for pair in zip(_arc(1, 5), _arc(0.42, 5, 36), strict=True) for point in pair]


def _cross(a: float = 0.34) -> list[Point]:
    return [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]


def _heart() -> list[Point]:
    turns = [2 * math.pi * i / 96 for i in range(96)]
    return [
        (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
        for t in turns
    ]


# name -> outline, and the outline that is cut out of it
SHAPES: dict[str, tuple[list[Point], list[Point]]] = {
    "circle": (_arc(), []),
    "square": (_arc(corners=4, start=45), []),
    "triangle": (_arc(corners=3), []),
    "star": (_star(), []),
    "cross": (_cross(), []),
    "ring": (_arc(), _arc(0.55)),
    "heart": (_heart(), []),
    "crescent": (_arc(), _arc(0.85, center=(0.5, 0.0))),
}
SEMITONES = [0, 2, 4, 5, 7, 9, 11, 12]
"""Pitch of each class above middle C: a major scale."""


def _coverage(name: str, degrees: float, side: int) -> np.ndarray:
    """`[h,w]` uint8: how much of each pixel the shape covers, its longer side being `side` pixels."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    outline, hole = ([(x * cos - y * sin, x * sin + y * cos) for x, y in points] for points in SHAPES[name])
    left, top = (min(p[i] for p in outline) for i in (0, 1))
    width, height = (max(p[i] for p in outline) - low for i, low in ((0, left), (1, top)))
    scale = side * SUPERSAMPLING / max(width, height)
    size = [max(1, math.ceil(length * scale / SUPERSAMPLING)) * SUPERSAMPLING for length in (width, height)]
    image = Image.new("L", (size[0], size[1]))
    draw = ImageDraw.Draw(image)
    for points, fill in ((outline, 255), (hole, 0)):
        if points:
            draw.polygon([((x - left) * scale, (y - top) * scale) for x, y in points], fill=fill)
    return np.asarray(image.reduce(SUPERSAMPLING))


def tone(labels: list[int], rng: Random, seconds: float = 0.5) -> np.ndarray:
    """`[T]` int16: a plucked note for each class, together; loudness and tuning vary a little."""
    time = np.arange(round(SAMPLE_RATE_HZ * seconds)) / SAMPLE_RATE_HZ
    envelope = np.minimum(time / 0.02, 1) * np.exp(-4 * time) * np.minimum((seconds - time) / 0.02, 1)
    pitches = [261.63 * 2 ** (SEMITONES[label] / 12) * rng.uniform(0.99, 1.01) for label in labels]
    chord = np.mean([np.sin(2 * math.pi * pitch * time) for pitch in pitches], axis=0)
    return np.rint(chord * envelope * rng.uniform(0.4, 0.9) * 32767).astype(np.int16)


class ShapesOptions(SceneOptions):
    """Options of the recipe `shapes`."""

    shapes: Most = Field(1, description="shapes in an image, at most")


@RECIPES.register("shapes")
class ShapesRecipe(SceneRecipe):
    """Colored shapes, turned by up to 20 degrees, each with its note of a scale."""

    Options = ShapesOptions
    classes = list(SHAPES)
    mask_classes = ["background", *SHAPES]
    source = "drawn; mask = pixels covered by half or more, box = its bounds; a note of the major scale for each class"
    licence = "CC0-1.0"

    def _shape(self, rng: Random) -> SceneObject:
        label, degrees = rng.randrange(len(self.classes)), rng.uniform(-20, 20)
        return SceneObject(label, lambda side: _coverage(self.classes[label], degrees, side))

    def sample(self, split: str, key: str, rng: Random) -> Sample:
        """One to `shapes` shapes."""
        options = self.options
        things = [self._shape(rng) for _ in range(rng.randint(1, options.shapes))]
        sample = scene(key, rng, things, self.classes, options.resolution, 127, options.background)
        sample.sound = tone([thing.label for thing in things], rng), SAMPLE_RATE_HZ
        return sample
