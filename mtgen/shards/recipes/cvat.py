"""cvat: images annotated with CVAT, exported as "CVAT for images 1.1": one XML file of all annotations."""

import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mtgen.config import ConfigSection
from mtgen.errors import DataError
from mtgen.registry import suggest
from mtgen.shards.annotated import (
    AnnotatedImage,
    AnnotatedObject,
    AnnotatedRecipe,
    check_size,
    ellipse,
    rectangle,
)
from mtgen.shards.input_files import read
from mtgen.shards.input_names import ListedFiles, split_named
from mtgen.shards.listing import CERTAIN, Listing, Proposal
from mtgen.shards.recipe import RECIPES
from mtgen.shards.voc_layout import parsed
from mtgen.shards.write import Sample

OUTLINES = ("polygon", "ellipse", "mask")
"""Shapes that give an object's outline; boxes give its box."""

WITHOUT_AREA = ("points", "polyline", "skeleton", "cuboid", "tag")
"""Shapes that give no region: they say that their class is in the image, and nothing else."""


class CvatOptions(ConfigSection):
    """Options of the recipe `cvat`."""

    annotations: str = Field(min_length=1, description="the XML file, or its folder (annotations.xml)")
    images: str | None = Field(None, description="folder of the images; default: images beside the XML, or its folder")
    masks: bool = Field(True, description="make masks from polygons, ellipses and masks, if there are any")
    test: float = Field(0.1, ge=0, lt=1, description="fraction held out, unless the images have subsets")


@dataclass(frozen=True)
class _Shape:
    """A shape of the XML: its kind, class number and attributes."""

    kind: str
    label: int
    values: dict[str, str]


@RECIPES.register("cvat")
class CvatRecipe(AnnotatedRecipe):
    """One sample per image of the XML; shapes of a higher z_order are in front.

    Boxes give objects without an outline; polygons, ellipses and masks give those with one; tags, points, lines and
    cuboids only a label. An image whose only annotation is one tag has that class. Source of the format:
    https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/.
    """

    Options = CvatOptions

    def __init__(self, options: CvatOptions, seed: int) -> None:
        super().__init__(options, seed)
        path = Path(options.annotations).resolve()
        self.path = path / "annotations.xml" if path.is_dir() else path
        try:
            root = parsed(read(self.path))
        except ValueError as error:
            raise DataError(f"{self.path}: {error}") from None
        elements = root.findall("image")
        if root.findall("track"):
            raise DataError(f"{self.path}: is of a video (it has tracks); export the task as 'CVAT for images 1.1'")
        if root.tag != "annotations" or not elements:
            raise DataError(f"{self.path}: has no images; export the task as 'CVAT for images 1.1'")
        self.root = self._folder(options.images)
        self.listed = ListedFiles(self.root)
        self.classes = self._class_names(root)
        self.sizes: dict[str, tuple[float, float]] = {}
        self.shapes: dict[str, list[_Shape]] = {}
        images = [image for element in elements if (image := self._image(element)) is not None]
        if not images:
            raise DataError(self.faults[0])
        self.notices += self.listed.notice()
        self.use(images, [self.path], options.test)
        outlined = any(shape.kind in OUTLINES for shapes in self.shapes.values() for shape in shapes)
        self.name_masks(options.masks, outlined, self.path)
        self.source = f"images of {self.root.name}, annotations of {self.path.name} (CVAT's format)"

    @classmethod
    def detect(cls, listing: Listing) -> list[Proposal]:
        """An XML file that begins with CVAT's annotations of images."""
        found = [file for file in listing.with_suffix(".xml")[:50] if _is_cvat(listing.head(file, 4096))]
        paths = [listing.path if listing.path.is_file() else listing.root / file for file in found]
        return [
            Proposal({"annotations": str(path)}, f"{path.name} of CVAT's format for images", CERTAIN) for path in paths
        ]

    def _folder(self, images: str | None) -> Path:
        if images is not None and not Path(images).is_dir():
            raise DataError(f"images={images}: the folder does not exist; give the one with the images")
        beside = self.path.parent / "images"
        return Path(images).resolve() if images is not None else beside if beside.is_dir() else self.path.parent

    def _class_names(self, root: Element) -> list[str]:
        """The labels of the task or project in their order, followed by others that shapes have."""
        named = [(name.text or "").strip() for name in root.findall("meta/*/labels/label/name")]
        used = {shape.get("label", "").strip() for image in root.findall("image") for shape in image}
        return list(dict.fromkeys([*filter(None, named), *sorted(filter(None, used))]))

    def _image(self, element: Element) -> AnnotatedImage | None:
        """The image of an element; `None`, and a fault, if its file does not exist or it is listed twice."""
        name, subset = element.get("name", ""), element.get("subset", "")
        split = split_named(subset)
        within_subset = self.root / subset / name
        try:
            where = f"{self.path}: image {element.get('id')}"
            inside = subset and within_subset.is_file() and within_subset.resolve().is_relative_to(self.root)
            path = within_subset if inside else self.listed.find(name, where)
        except DataError as error:
            self.faults.append(str(error))
            return None
        key = f"{split}/{name}" if split else name
        if key in self.shapes:
            self.faults.append(f"{self.path}: the image {name!r} occurs twice; remove one of them")
            return None
        self.sizes[key] = float(element.get("width") or 0), float(element.get("height") or 0)
        self.shapes[key] = []
        for shape in element:
            if label := shape.get("label", "").strip():
                self.shapes[key].append(_Shape(shape.tag, self.classes.index(label), dict(shape.attrib)))
            else:
                self.left_alone.add("shapes without a label", name)
        return AnnotatedImage(path, str(PurePosixPath(key).with_suffix("")), key, split)

    def labels_place(self, image: AnnotatedImage) -> str:
        """The XML file and the image's name in it."""
        return f"{self.path}: image {image.labels!r}"

    def objects(self, image: AnnotatedImage, width: int, height: int) -> list[AnnotatedObject]:
        """The objects in the image's element."""
        check_size(width, height, self.sizes[image.labels])
        return [_object(shape, width, height) for shape in self.shapes[image.labels]]

    def make(self, split: str, number: int) -> Sample:
        """Make the sample of one image; with one tag and nothing else, the tag is its class."""
        sample = super().make(split, number)
        shapes = self.shapes[self.images[split][number].labels]
        if [shape.kind for shape in shapes] == ["tag"]:
            sample.label, sample.boxes, sample.labels, sample.mask = shapes[0].label, None, None, None
        return sample


def _is_cvat(head: bytes) -> bool:
    return b"<annotations" in head and (b"<version>1.1" in head or b"<image " in head)


def _object(shape: _Shape, width: int, height: int) -> AnnotatedObject:
    """The object of a shape; `ValueError` if an attribute is missing or not a number."""

    def number(name: str, default: float | None = None) -> float:
        text = shape.values.get(name)
        if text is None and default is not None:
            return default
        try:
            value = float(text or "")
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"a {shape.kind} whose {name} is {text!r} instead of a number")
        return value

    layer, degrees = int(number("z_order", 0)), number("rotation", 0)
    if shape.kind == "box":
        x0, y0, x1, y1 = (number(name) for name in ("xtl", "ytl", "xbr", "ybr"))
        corners = rectangle(x0, y0, x1, y1, degrees)
        bounds = (min(corners[::2]), min(corners[1::2]), max(corners[::2]), max(corners[1::2]))
        return AnnotatedObject(shape.label, bounds if degrees else (x0, y0, x1, y1), layer=layer)
    if shape.kind == "polygon":
        points = _numbers(shape.values.get("points", ""), ";")
        return AnnotatedObject(shape.label, polygons=[[value for point in points for value in point]], layer=layer)
    if shape.kind == "ellipse":
        outline = ellipse(number("cx"), number("cy"), number("rx"), number("ry"), degrees)
        return AnnotatedObject(shape.label, polygons=[outline], layer=layer)
    if shape.kind == "mask":
        left, top, w, h = (int(number(name)) for name in ("left", "top", "width", "height"))
        pixels = _mask(shape.values.get("rle", ""), (left, top, w, h), width, height)
        return AnnotatedObject(shape.label, pixels=pixels, layer=layer)
    if shape.kind not in WITHOUT_AREA:
        known = ", ".join(("box", *OUTLINES, *WITHOUT_AREA))
        raise ValueError(f"unknown shape {shape.kind!r}; {suggest(shape.kind, known.split(', '))}")
    return AnnotatedObject(shape.label)


def _numbers(text: str, separator: str) -> list[tuple[float, float]]:
    """Parse "x,y;x,y"; `ValueError` if it has anything else."""
    try:
        points = [tuple(map(float, pair.split(","))) for pair in text.split(separator) if pair.strip()]
    except ValueError:
        points = [()]
    if not all(len(point) == 2 and all(map(math.isfinite, point)) for point in points):
        raise ValueError(f"points {text[:60]!r}; they are pairs such as 1.5,2;3,4")
    return [(point[0], point[1]) for point in points]


def _mask(rle: str, box: tuple[int, int, int, int], width: int, height: int) -> NDArray[np.bool_]:
    """`[H,W]` of run lengths in a box (left, top, width, height): rows from left to right, the first run outside."""
    left, top, w, h = box
    try:
        lengths = [int(text) for text in rle.split(",")]
    except ValueError:
        lengths = [-1]
    if min(lengths) < 0 or sum(lengths) != w * h:
        raise ValueError(f"a mask whose run lengths do not add up to {w}x{h} pixels")
    if left < 0 or top < 0 or left + w > width or top + h > height:
        raise ValueError(f"a mask of {w}x{h} at ({left}, {top}), outside its image of {width}x{height}")
    pixels = np.zeros((height, width), np.bool_)
    pixels[top : top + h, left : left + w] = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(h, w)
    return pixels
