"""labelme: images annotated with labelme or X-AnyLabeling: one JSON file of shapes beside each image."""

import base64
import binascii
import io
import math
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field, StringConstraints, ValidationError, field_validator

from mtgen.config import ConfigSection
from mtgen.errors import DataError
from mtgen.registry import suggest
from mtgen.shards.annotated import AnnotatedImage, AnnotatedObject, AnnotatedRecipe, check_size, ellipse
from mtgen.shards.input_files import IMAGE_SUFFIXES, as_stored, read_image, read_json, read_names
from mtgen.shards.input_names import files_below, split_folders
from mtgen.shards.listing import CERTAIN, Listing, Proposal
from mtgen.shards.recipe import RECIPES
from mtgen.shards.write import Sample

OUTLINES = ("polygon", "circle", "mask")
"""Shapes that give an object's outline; rectangles give its box."""

WITHOUT_AREA = ("point", "points", "line", "linestrip")
"""Shapes without an area: they say that their class is in the image, and nothing else."""

RESERVED = {"__ignore__", "_background_"}
"""Labels at the start of labelme's labels.txt that are not classes."""

Coordinate = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]


class LabelmeOptions(ConfigSection):
    """Options of the recipe `labelme`."""

    root: str = Field(min_length=1, description="folder of the JSON files, with or without folders of splits")
    classes: list[str] = Field(
        [], description="names of the classes, in order, or a text file of them; default: all labels, alphabetically"
    )
    masks: bool = Field(True, description="make masks from the polygons, if there are any")
    test: float = Field(0.1, ge=0, lt=1, description="fraction held out, if there are no folders of splits")

    @field_validator("classes", mode="before")
    @classmethod
    def _from_file(cls, value: Any) -> Any:
        return read_names(Path(value)) if isinstance(value, str) else value


class _Shape(BaseModel):
    label: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    points: list[tuple[Coordinate, Coordinate]]
    shape_type: str = "polygon"
    group_id: int | str | None = None
    mask: str | None = None


class _File(BaseModel):
    shapes: list[_Shape]
    imagePath: str
    imageWidth: int | None = None
    imageHeight: int | None = None


@RECIPES.register("labelme")
class LabelmeRecipe(AnnotatedRecipe):
    """One sample per JSON file; shapes of one label and group are parts of one object.

    Polygons, circles and masks give objects with an outline, rectangles boxes; points and lines only a label. If no
    file has shapes, flags are classes. Source of the format: https://github.com/wkentaro/labelme.
    """

    Options = LabelmeOptions

    def __init__(self, options: LabelmeOptions, seed: int) -> None:
        super().__init__(options, seed)
        self.root = Path(options.root).resolve()
        if not self.root.is_dir():
            raise DataError(f"root={options.root}: the folder does not exist; give the one with labelme's JSON files")
        listed: dict[Path, str] = {}
        labels, flags, outlined = set(), set(), False
        below = files_below(self.root, self.left_alone)
        for path in (path for path in below if path.suffix.lower() == ".json"):
            values = read_json(path)
            if not isinstance(values, dict) or not {"shapes", "imagePath"} <= values.keys():
                self.left_alone.add("JSON files that are not labelme's", path.relative_to(self.root))
                continue
            listed[path] = str(values["imagePath"])
            flags |= set(values["flags"]) if isinstance(values.get("flags"), dict) else set()
            for shape in values["shapes"] if isinstance(values["shapes"], list) else []:
                if isinstance(shape, dict) and isinstance(shape.get("label"), str):
                    labels.add(shape["label"].strip())
                    outlined = outlined or shape.get("shape_type", "polygon") in OUTLINES
        if not listed:
            raise DataError(f"root={options.root}: no JSON file of labelme in it (with 'shapes' and 'imagePath')")
        self.flagged = not labels - RESERVED  # images are classified by flags, and have no shapes
        names = flags if self.flagged else labels
        self.classes = [name for name in options.classes if name not in RESERVED] or sorted(names - RESERVED)
        self.folders = split_folders(self.root, [path.relative_to(self.root) for path in listed])
        images = [self._image(file, name) for file, name in listed.items()]
        used = {image.path for image in images}
        for path in below:
            if path.suffix.lower() in IMAGE_SUFFIXES and path not in used:
                self.left_alone.add("images without a JSON file of labelme", path.relative_to(self.root))
        self.use(images, listed, options.test)
        self.name_masks(options.masks, outlined, self.root)
        self.source = f"{self.root.name} (labelme's format)"

    @classmethod
    def detect(cls, listing: Listing) -> list[Proposal]:
        """JSON files that have labelme's keys in their first bytes, or the images' names."""
        if listing.path.is_file():
            return []
        files = listing.with_suffix(".json")
        found = [file for file in files[:10] if b'"shapes"' in (head := listing.head(file)) or b'"imageData"' in head]
        if not found:
            return []
        reason = f"{len(files)} JSON files, those of labelme's format such as {found[0]}"
        return [Proposal({"root": str(listing.path)}, reason, CERTAIN)]

    def _image(self, file: Path, listed: str) -> AnnotatedImage:
        """The image of a JSON file: the one that it names, or one of the same name beside it, or the file itself."""
        name = PureWindowsPath(listed).name  # separates at both kinds of slashes
        places = [file.parent / listed.replace("\\", "/"), file.parent / name]
        places += [file.with_suffix(suffix) for suffix in IMAGE_SUFFIXES]
        places = [path.resolve() for path in places if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
        image = places[0] if places else file
        within = file.relative_to(self.root)
        return AnnotatedImage(image, within.with_suffix("").as_posix(), file, self.folders.split_of(within))

    def encoded_image(self, image: AnnotatedImage) -> bytes:
        """The image file or, without one, the image in the JSON file."""
        if image.path != image.labels:
            return read_image(image.path)
        values = read_json(image.path)
        try:
            data = base64.b64decode(values.get("imageData") or "", validate=True)
        except (binascii.Error, TypeError):
            data = b""
        if not data:
            raise DataError(f"{image.path}: its image {values['imagePath']!r} does not exist, and is not in the file")
        return as_stored(image.path, data)

    def make(self, split: str, number: int) -> Sample:
        """Make the sample of one image; in a data set without shapes, its flags are its class or labels."""
        sample = super().make(split, number)
        if self.flagged:
            flags = read_json(self.images[split][number].labels).get("flags") or {}
            labels = sorted(
                self.classes.index(name) for name, is_set in flags.items() if is_set and name in self.classes
            )
            sample.boxes, sample.labels, sample.mask = None, labels if len(labels) > 1 else None, None
            sample.label = labels[0] if len(labels) == 1 else None
        return sample

    def objects(self, image: AnnotatedImage, width: int, height: int) -> list[AnnotatedObject]:
        """The objects in the image's JSON file."""
        try:
            content = _File.model_validate(read_json(image.labels))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from None
        check_size(width, height, (content.imageWidth or 0, content.imageHeight or 0))
        objects: list[AnnotatedObject] = []
        groups: dict[tuple[str, int | str], list[_Shape]] = {}
        for number, shape in enumerate(content.shapes):
            if shape.label not in self.classes and shape.label not in RESERVED:
                raise ValueError(f"unknown class {shape.label!r}; {suggest(shape.label, self.classes)}")
            group = shape.group_id if shape.group_id is not None else f"shape {number}"
            groups.setdefault((shape.label, group), []).append(shape)
        for (label, _), shapes in groups.items():
            if label not in RESERVED:
                objects.append(_object(self.classes.index(label), shapes, width, height))
        return objects


def _object(label: int, shapes: list[_Shape], width: int, height: int) -> AnnotatedObject:
    """The shapes of one object; `ValueError` if one of them is invalid."""
    polygons: list[list[float]] = []
    pixels: NDArray[np.bool_] | None = None
    corners: list[tuple[float, float]] = []
    for shape in shapes:
        if shape.shape_type == "mask":
            part = _mask(shape, width, height)
            pixels = part if pixels is None else pixels | part
        elif shape.shape_type == "circle" and len(shape.points) == 2:
            (x, y), (edge_x, edge_y) = shape.points
            radius = math.hypot(edge_x - x, edge_y - y)
            polygons.append(ellipse(x, y, radius, radius))
        elif shape.shape_type == "polygon":
            polygons.append([value for point in shape.points for value in point])
        elif shape.shape_type in ("rectangle", "rotation"):
            corners += shape.points
        elif shape.shape_type not in WITHOUT_AREA:
            raise ValueError(
                f"a {shape.shape_type} of {len(shape.points)} points; use polygons, rectangles, circles or masks"
            )
    box = None
    if corners:
        columns, rows = zip(*corners, strict=True)
        box = (min(columns), min(rows), max(columns), max(rows))
    if pixels is not None and polygons:
        pixels = pixels | AnnotatedObject(label, polygons=polygons).region(height, width)
    return AnnotatedObject(label, box, polygons, pixels)


def _mask(shape: _Shape, width: int, height: int) -> NDArray[np.bool_]:
    """`[H,W]`: the pixels of a shape that is a PNG between two corners, in base64."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape.mask or "", validate=True)), formats=("PNG",)) as picture:
            part = np.asarray(picture.convert("L")) > 0
    except (binascii.Error, OSError, ValueError):
        raise ValueError("the mask of a shape is not a PNG in base64; save the file again with labelme") from None
    pixels = np.zeros((height, width), np.bool_)
    left, top = (round(value) for value in shape.points[0]) if shape.points else (0, 0)
    if left < 0 or top < 0 or left + part.shape[1] > width or top + part.shape[0] > height:
        raise ValueError(
            f"the mask of a shape, {part.shape[1]}x{part.shape[0]} at ({left}, {top}), is outside its image"
        )
    pixels[top : top + part.shape[0], left : left + part.shape[1]] = part
    return pixels
