"""shapes: drawn shapes with all components, including sound; nothing is downloaded."""

import math
from random import Random

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field

from mtgen.shards.recipe import RECIPES
from mtgen.shards.synthetic import ObjectLimit, SceneObject, SceneOptions, SceneRecipe, scene
from mtgen.shards.write import Sample

Point = tuple[float, float]
SAMPLE_RATE_HZ = 8_000
"""Sample rate of the sounds."""

SUPERSAMPLING = 8
"""Points per pixel and direction of which its coverage is the mean."""


def _arc(radius: float = 1.0, corners: int = 96, start: float = 0.0, center: Point = (0.0, 0.0)) -> list[Point]:
    """Corners of a regular polygon; the first one is `start` degrees from the top."""
    angles = [math.radians(start) + 2 * math.pi * i / corners for i in range(corners)]
    return [(center[0] + radius * math.sin(t), center[1] - radius * math.cos(t)) for t in angles]


def _star() -> list[Point]:
    return [point for pair in zip(_arc(1, 5), _arc(0.42, 5, 36), strict=True) for point in pair]


def _cross(a: float = 0.34) -> list[Point]:
    return [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]


def _heart() -> list[Point]:
    angles = [2 * math.pi * i / 96 for i in range(96)]
    return [
        (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
        for t in angles
    ]


# name -> outline, and the outline of its hole
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
"""Pitch of each class above middle C, semitones: a major scale."""


def _coverage(name: str, degrees: float, side: int) -> np.ndarray:
    """`[h,w]` uint8: coverage of each pixel by a shape whose longer side is `side` pixels."""
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
    """`[T]` int16: a chord of one plucked note per class; loudness and tuning vary slightly."""
    time = np.arange(round(SAMPLE_RATE_HZ * seconds)) / SAMPLE_RATE_HZ
    envelope = np.minimum(time / 0.02, 1) * np.exp(-4 * time) * np.minimum((seconds - time) / 0.02, 1)
    pitches = [261.63 * 2 ** (SEMITONES[label] / 12) * rng.uniform(0.99, 1.01) for label in labels]
    chord = np.mean([np.sin(2 * math.pi * pitch * time) for pitch in pitches], axis=0)
    return np.rint(chord * envelope * rng.uniform(0.4, 0.9) * 32767).astype(np.int16)


class ShapesOptions(SceneOptions):
    """Options of the recipe `shapes`."""

    shapes: ObjectLimit = Field(1, description="largest number of shapes in an image")


@RECIPES.register("shapes")
class ShapesRecipe(SceneRecipe):
    """Colored shapes, rotated by up to 20 degrees, each with its note of a scale."""

    Options = ShapesOptions
    classes = list(SHAPES)
    mask_classes = ["background", *SHAPES]
    source = "drawn; mask = pixels covered by half or more, box = its bounds; a note of the major scale for each class"
    licence = "CC0-1.0"

    def _shape(self, rng: Random) -> SceneObject:
        label, degrees = rng.randrange(len(self.classes)), rng.uniform(-20, 20)
        return SceneObject(label, lambda side: _coverage(self.classes[label], degrees, side))

    def sample(self, split: str, key: str, rng: Random) -> Sample:
        """A scene with one to `shapes` shapes."""
        options = self.options
        shapes = [self._shape(rng) for _ in range(rng.randint(1, options.shapes))]
        sample = scene(key, rng, shapes, self.classes, options.resolution, 127, options.background)
        sample.sound = tone([shape.label for shape in shapes], rng), SAMPLE_RATE_HZ
        return sample
