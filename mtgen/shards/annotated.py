"""Annotated images: objects with boxes and outlines, rendered into boxes, labels and masks."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mtgen.errors import DataError
from mtgen.schema import IGNORE_INDEX
from mtgen.shards.coco_masks import polygon
from mtgen.shards.input_files import clipped, file_state, held_out, key_of, read_image, size_of
from mtgen.shards.recipe import Recipe
from mtgen.shards.write import Sample

BACKGROUND = "background"
"""Name of mask class 0 where masks are rendered from objects."""

SPLIT_ORDER = ("train", "val", "test")

CIRCLE_CORNERS = 64
"""Corners of the polygon that stands for an ellipse."""


@dataclass(frozen=True)
class AnnotatedObject:
    """One object in an image.

    Attributes:
        label: its class number.
        box: x0, y0, x1, y1 in pixels; `None`: the bounds of its region.
        polygons: outlines of its parts, each x0, y0, x1, y1, ... in pixels; empty if the outline is not known.
        pixels: `[H,W]` bool, in place of polygons.
        layer: objects of a higher layer are in front; within a layer, smaller objects are.
        unknown: the class of its region is unknown, as that of a crowd.
    """

    label: int
    box: tuple[float, float, float, float] | None = None
    polygons: Sequence[Sequence[float]] = ()
    pixels: NDArray[np.bool_] | None = None
    layer: int = 0
    unknown: bool = False

    @property
    def outlined(self) -> bool:
        """Whether its region is known: a polygon needs three corners."""
        return self.pixels is not None or any(len(points) >= 6 for points in self.polygons)

    def bounds(self) -> tuple[float, float, float, float] | None:
        """Its box; `None` if it has neither a box nor a region."""
        if self.box is not None:
            return self.box
        if self.pixels is not None:
            rows, columns = np.flatnonzero(self.pixels.any(1)), np.flatnonzero(self.pixels.any(0))
            if not rows.size:
                return None
            return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
        points = [value for part in self.polygons for value in part]
        return (min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])) if points else None

    def region(self, height: int, width: int) -> NDArray[np.bool_]:
        """`[H,W]`: its pixels; none if its region is not known, or smaller than a pixel."""
        inside = np.zeros((height, width), np.bool_) if self.pixels is None else self.pixels
        for points in self.polygons if self.pixels is None else ():
            if len(points) >= 6:
                inside |= polygon(points, height, width)
        return inside


def rectangle(x0: float, y0: float, x1: float, y1: float, degrees: float = 0) -> list[float]:
    """The corners of a rectangle, rotated clockwise about its center."""
    x, y, cos, sin = (x0 + x1) / 2, (y0 + y1) / 2, math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(x0 - x, y0 - y), (x1 - x, y0 - y), (x1 - x, y1 - y), (x0 - x, y1 - y)]
    return [value for dx, dy in corners for value in (x + dx * cos - dy * sin, y + dx * sin + dy * cos)]


def ellipse(x: float, y: float, horizontal: float, vertical: float, degrees: float = 0) -> list[float]:
    """Corners of an ellipse of the given center and radii, rotated clockwise."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    angles = [2 * math.pi * i / CIRCLE_CORNERS for i in range(CIRCLE_CORNERS)]
    points = [(horizontal * math.cos(t), vertical * math.sin(t)) for t in angles]
    return [value for dx, dy in points for value in (x + dx * cos - dy * sin, y + dx * sin + dy * cos)]


def boxes_of(objects: Iterable[AnnotatedObject], width: int, height: int) -> list[list[float]]:
    """Boxes `[x0,y0,x1,y1,class]`, clipped to the image; without those that have no area.

    Raises:
        ValueError: a box is reversed, or outside the image.
    """
    found = []
    for item in objects:
        bounds = item.bounds()
        if bounds and (box := clipped(bounds, width, height)):
            found.append([*box, item.label])
    return found


def mask_of(objects: Sequence[AnnotatedObject], height: int, width: int) -> NDArray[np.uint8]:
    """Render objects -> `[H,W]`: class + 1 where an object is, else 0.

    It is 255 where the class is unknown, and in the box of an object without pixels whose outline is missing or
    encloses nothing. Objects of a higher layer are in front and, within a layer, those of fewer pixels.
    """
    mask = np.zeros((height, width), np.uint8)
    regions = [(item.region(height, width), item.label + 1) for item in objects]
    for i, item in enumerate(objects):
        if item.pixels is None and not regions[i][0].any() and (box := item.bounds()):
            regions[i] = (_box_pixels(box, height, width), IGNORE_INDEX)
    for i in sorted(range(len(objects)), key=lambda i: (objects[i].layer, -int(regions[i][0].sum()))):
        mask[regions[i][0]] = IGNORE_INDEX if objects[i].unknown else regions[i][1]
    return mask


def _box_pixels(box: tuple[float, float, float, float], height: int, width: int) -> NDArray[np.bool_]:
    """`[H,W]`: all pixels that a box touches."""
    inside = np.zeros((height, width), np.bool_)
    x0, y0, x1, y1 = box
    columns = slice(max(math.floor(x0), 0), max(math.ceil(x1), 0))
    inside[max(math.floor(y0), 0) : max(math.ceil(y1), 0), columns] = True
    return inside


@dataclass(frozen=True)
class AnnotatedImage:
    """An image of a data set, and where a recipe finds its labels.

    Attributes:
        path: the image file.
        name: its path in the data set, which determines its key and, unless it has a split, the split.
        labels: what the recipe needs to find its labels.
        split: train, val or test; `None`: decided by the hash of its name.
    """

    path: Path
    name: str
    labels: Any = None
    split: str | None = None


class HasSplit(Protocol):
    """What is distributed to splits: it has a name and, perhaps, a split."""

    @property
    def name(self) -> str:
        """The name that decides, by its hash."""

    @property
    def split(self) -> str | None:
        """The split that it is known to be in."""


Item = TypeVar("Item", bound=HasSplit)


def in_splits(seed: int, items: Iterable[Item], test: float) -> dict[str, list[Item]]:
    """Distribute items to their splits; of those without one, about the fraction `test` is for testing."""
    items = list(items)
    chosen = held_out(seed, [item.name for item in items if item.split is None], test)
    splits: dict[str, list[Item]] = {}
    for item in items:
        splits.setdefault(item.split or ("test" if item.name in chosen else "train"), []).append(item)
    return {split: splits[split] for split in SPLIT_ORDER if split in splits}


class AnnotatedRecipe(Recipe):
    """A recipe for images with annotated objects: `use` its images, then name the classes; `objects` reads the labels.

    What is wrong with one image belongs into `objects`, so that all problems are reported together.
    """

    licence = ""
    images: dict[str, list[AnnotatedImage]]

    def use(self, images: Iterable[AnnotatedImage], inputs: Iterable[Path], test: float) -> None:
        """Distribute the images to their splits; `test` is the fraction of those without a split that are for testing.

        Args:
            inputs: the files of labels, whose changes must restart an interrupted run.
        """
        self.images = in_splits(self.seed, images, test)
        files = [image.path for members in self.images.values() for image in members]
        self.sources = [file_state(path) for path in sorted({*files, *inputs}) if path.is_file()]

    def name_masks(self, masks: bool, outlined: bool, where: str | Path) -> None:
        """Name the mask classes: the background and every class, if masks are wanted and any object has an outline."""
        self.mask_classes = [BACKGROUND, *self.classes] if masks and outlined else []
        if len(self.mask_classes) > IGNORE_INDEX:
            raise DataError(
                f"{where}: {len(self.classes)} classes, but a mask can only have {IGNORE_INDEX - 1}; "
                "masks=false leaves masks out"
            )

    @abstractmethod
    def objects(self, image: AnnotatedImage, width: int, height: int) -> list[AnnotatedObject]:
        """The objects of an image whose size in pixels is given.

        Raises:
            DataError, ValueError: its labels are invalid; the message of a `ValueError` is put after their file.
        """

    def encoded_image(self, image: AnnotatedImage) -> bytes:
        """The image as it is stored: JPEG, PNG and WebP unchanged, others as PNG."""
        return read_image(image.path)

    def labels_place(self, image: AnnotatedImage) -> str:
        """What a message about the labels of an image names: their file, or the image in a common file."""
        return str(image.labels if isinstance(image.labels, Path) else image.path)

    @property
    def splits(self) -> dict[str, int]:
        """Split -> number of samples."""
        return {split: len(images) for split, images in self.images.items()}

    def origin(self, split: str, number: int) -> str:
        """The image file."""
        return str(self.images[split][number].path)

    def make(self, split: str, number: int) -> Sample:
        """Make the sample of one image: boxes, labels and, if there are mask classes, the mask of its objects."""
        image = self.images[split][number]
        data = self.encoded_image(image)
        width, height = size_of(image.path, data)
        try:
            objects = self.objects(image, width, height)
            boxes = boxes_of(objects, width, height)
            mask = mask_of(objects, height, width) if self.mask_classes else None
        except ValueError as error:
            raise DataError(f"{self.labels_place(image)}: {error}") from None
        return Sample(
            key=key_of(image.name),
            image=data,
            mask=mask,
            boxes=boxes,
            labels=sorted({item.label for item in objects}),
        )


def check_size(width: int, height: int, annotated: tuple[float, float]) -> None:
    """Compare an image's size with that in its annotation, where 0 means that it is not given.

    Raises:
        ValueError: they differ.
    """
    if all(annotated) and annotated != (width, height):
        raise ValueError(
            f"is for {annotated[0]:g}x{annotated[1]:g} pixels, but its image has {width}x{height}; "
            "use the image that was annotated, neither resized nor rotated"
        )
