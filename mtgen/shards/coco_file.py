"""One JSON file of instances in COCO's format, with its images and captions."""

import json
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from mtgen.config import ConfigSection
from mtgen.errors import DataError
from mtgen.schema import IGNORE_INDEX
from mtgen.shards import coco_masks
from mtgen.shards.annotated import BACKGROUND, SPLIT_ORDER, AnnotatedObject, boxes_of, mask_of
from mtgen.shards.input_files import file_state, held_out, key_of, read_image, read_json, size_of
from mtgen.shards.input_names import ListedFiles
from mtgen.shards.recipe import Recipe
from mtgen.shards.write import Sample

Text = Annotated[str, StringConstraints(strip_whitespace=True)]  # the constraint makes pydantic refuse invalid Unicode
PixelLength = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Side = Annotated[int | None, Field(ge=1), BeforeValidator(lambda side: side or None)]
"""Width or height of an image; 0, which some tools write, is as good as none."""

MAX_RECTANGLE_OFFSET = 1
"""Distance, pixels, within which the corners of a polygon are those of its box."""


class CocoOptions(ConfigSection):
    """Options of the recipe `coco`."""

    root: str | None = Field(
        None,
        description="folder of a whole data set: images, and JSON files of instances (and captions) for each split",
    )
    images: str | None = Field(None, min_length=1, description="without `root`: folder of the images in the JSON")
    instances: str | None = Field(
        None, min_length=1, description="JSON with images, categories and annotations (boxes, segmentations)"
    )
    captions: str | None = Field(None, description="JSON with captions of the same images")
    masks: bool = Field(True, description="make masks from the segmentations")
    split: Literal["train", "val", "test"] | None = Field(None, description="put all samples into this split")
    test: float = Field(
        0.1, ge=0, lt=1, description="fraction of the samples in the test split, unless `split` or a file names one"
    )

    @model_validator(mode="after")
    def _one_place(self) -> "CocoOptions":
        given = [name for name in ("images", "instances", "captions", "split") if getattr(self, name)]
        if self.root and given:
            raise ValueError(
                f"root={self.root} finds all files and splits, which excludes {given[0]}=; give one of them"
            )
        if not self.root and not (self.images and self.instances):
            raise ValueError("give root=, the folder of a data set, or images= and instances=, a folder and its JSON")
        return self

    @model_validator(mode="after")
    def _one_rule(self) -> "CocoOptions":
        if self.split and "test" in self.model_fields_set:
            raise ValueError(
                f"split={self.split} puts all samples into one split, which excludes test={self.test:g}; "
                "give one of the two"
            )
        return self


class _Image(BaseModel):
    id: int
    file_name: str = Field(min_length=1)
    width: Side = None
    height: Side = None


class _Category(BaseModel):
    id: int
    name: Text


class _Runs(BaseModel):
    size: tuple[int, int]
    counts: str | list[int]


def _flat(segmentation: Any) -> bool:
    """Whether a segmentation is one polygon in place of a list of them."""
    return isinstance(segmentation, list) and bool(segmentation) and isinstance(segmentation[0], int | float)


class _Object(BaseModel):
    """One annotated object; `bbox` is left, top, width and height."""

    id: int | None = None
    image_id: int
    category_id: int
    bbox: Annotated[
        tuple[PixelLength, PixelLength, PixelLength, PixelLength] | None, BeforeValidator(lambda box: box or None)
    ] = None
    iscrowd: Annotated[bool, BeforeValidator(lambda crowd: crowd or False)] = False
    segmentation: Annotated[
        _Runs | list[list[PixelLength] | _Runs] | None, BeforeValidator(lambda part: [part] if _flat(part) else part)
    ] = None

    @property
    def polygons(self) -> list[list[float]]:
        """Its polygons with three corners or more; converters also write empty ones, for boxes alone."""
        parts = self.segmentation if isinstance(self.segmentation, list) else []
        return [part for part in parts if isinstance(part, list) and (len(part) >= 6 or len(part) % 2)]

    @property
    def runs(self) -> list[_Runs]:
        """Its run lengths."""
        parts = self.segmentation if isinstance(self.segmentation, list) else [self.segmentation]
        return [part for part in parts if isinstance(part, _Runs)]

    def is_rectangle(self) -> bool:
        """Whether its only polygon is its box."""
        if self.bbox is None or self.runs or len(self.polygons) != 1 or len(self.polygons[0]) not in (8, 10):
            return False
        left, top, width, height = self.bbox
        sides = ((left, left + width), (top, top + height))
        points = self.polygons[0]
        return all(
            min(abs(value - side) for side in sides[i % 2]) <= MAX_RECTANGLE_OFFSET for i, value in enumerate(points)
        )


class _Caption(BaseModel):
    image_id: int
    caption: Text


class _Instances(BaseModel):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[Any]


class _Captions(BaseModel):
    images: list[_Image] = []
    annotations: list[Any]


Contents = TypeVar("Contents", bound=BaseModel)
Identified = TypeVar("Identified", _Image, _Category)
OBJECTS = TypeAdapter(list[_Object])


def _parse(kind: type[Contents], values: Any, path: Path, *location: str) -> Contents:
    """Validate values from `location` in a file; `DataError` names the first problem."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join([*location, *map(str, first["loc"])][:3])  # annotations.7.bbox; deeper, it names our types
        problem = "not an object" if first["type"] == "model_type" else first["msg"][0].lower() + first["msg"][1:]
        if where.endswith("segmentation"):
            problem = "neither a list of polygons, which are lists of numbers x, y, x, y, ..., nor run lengths"
        remedy = (
            "" if "." in where else f"; the file has to be an object with the lists {' and '.join(kind.model_fields)}"
        )
        raise DataError(f"{path}: {where + ': ' if where else ''}{problem}{remedy}") from None


def _by_id(path: Path, key: str, entries: list[Identified]) -> dict[int, Identified]:
    by_id: dict[int, Identified] = {}
    for entry in entries:
        if entry.id in by_id:
            raise DataError(f"{path}: {key}: the id {entry.id} occurs twice; ids have to be unique")
        by_id[entry.id] = entry
    return by_id


class InstancesFile(Recipe):
    """The samples of one file of instances.

    Attributes:
        bad: image id -> what is wrong with its file or its annotations; `make` raises that.
    """

    Options = CocoOptions
    licence = ""

    def __init__(self, options: CocoOptions, seed: int) -> None:
        super().__init__(options, seed)
        assert options.instances is not None and options.images is not None
        self.path = Path(options.instances).resolve()
        self.root = Path(options.images).resolve()
        if not self.root.is_dir():
            raise DataError(f"images={options.images}: the folder does not exist; give the one with the images")
        self.listed = ListedFiles(self.root)
        self.bad: dict[int, list[str]] = {}
        contents = _parse(_Instances, read_json(self.path), self.path)
        images = _by_id(self.path, "images", contents.images)
        if not images:
            raise DataError(f"{self.path}: its list of images is empty; give the JSON of the instances")
        categories = sorted(_by_id(self.path, "categories", contents.categories).values(), key=lambda c: c.id)
        self._number_categories(categories, contents.annotations)
        entries, segmented = self._entries(contents.annotations, images)
        self.mask_classes = [BACKGROUND, *self.classes] if options.masks and segmented else []
        if len(self.mask_classes) > IGNORE_INDEX:
            raise DataError(
                f"{self.path}: {len(categories)} categories, but a mask can only have {IGNORE_INDEX - 1}; "
                "masks=false leaves masks out"
            )
        # every process has all annotations; uncompressed, those of COCO's train2017 would take gigabytes in each
        self.objects = {image: zlib.compress(json.dumps(found).encode(), 1) for image, found in entries.items()}
        self.captions = self._captions(Path(options.captions).resolve(), images) if options.captions else {}
        self.images: dict[str, list[_Image]] = {}
        files = [path for image in images.values() if (path := self._resolve(image)) is not None]
        chosen = held_out(seed, [image.file_name for image in images.values()], options.test)
        for image in images.values():
            split = options.split or ("test" if image.file_name in chosen else "train")
            self.images.setdefault(split, []).append(image)
        self.images = {split: self.images[split] for split in SPLIT_ORDER if split in self.images}
        json_files = [self.path, *([Path(options.captions)] if options.captions else [])]
        self.sources: Any = [file_state(path) for path in [*json_files, *files]]
        names = " and ".join(path.name for path in json_files)
        self.notices += self.listed.notice()
        self.source = f"images of {self.root.name}, annotations of {names} (COCO's format)"

    def _number_categories(self, categories: list[_Category], annotations: list[Any]) -> None:
        """Number the classes; categories of one name are one class if at most one of them has annotations."""
        used = {entry.get("category_id") for entry in annotations if isinstance(entry, dict)}
        of_name: dict[str, list[int]] = {}
        for category in categories:
            of_name.setdefault(category.name, []).append(category.id)
        for name, ids in of_name.items():
            if len(ids) > 1 and len(used & set(ids)) > 1:
                raise DataError(
                    f"{self.path}: categories: {' and '.join(map(str, ids))} are both named {name!r}, and both have "
                    "annotations; rename one, or give both the same id"
                )
            if len(ids) > 1:
                self.notices.append(f"the categories {' and '.join(map(str, ids))} of one name are the class {name!r}")
        self.classes = list(of_name)
        self.number = {category.id: self.classes.index(category.name) for category in categories}

    def _entries(self, annotations: list[Any], images: dict[int, _Image]) -> tuple[dict[int, list[Any]], bool]:
        """Validate the annotations: image id -> its annotations, and whether any has a region."""
        entries: dict[int, list[Any]] = {}
        counts: Counter[str] = Counter()
        for number, entry in enumerate(annotations):
            try:
                item = self._checked(entry, number, images)
            except DataError as error:
                image = entry.get("image_id") if isinstance(entry, dict) else None
                place = self.bad.setdefault(image, []) if isinstance(image, int) and image in images else self.faults
                place.append(str(error))
                continue
            regions = bool(item.polygons or item.runs)
            counts["regions"] += regions
            counts["rectangles"] += item.is_rectangle()
            counts["degenerate"] += bool(item.segmentation) and not regions
            counts["flat"] += _flat(entry.get("segmentation"))
            entries.setdefault(item.image_id, []).append(entry)
        if counts["degenerate"]:
            what = "255 (unknown) in the masks" if counts["regions"] else "without masks"
            self.notices.append(
                f"{counts['degenerate']:,} objects have empty polygons, or ones of under three points: they are {what}"
            )
        if counts["flat"]:
            self.notices.append(f"{counts['flat']:,} polygons that are not in a list are taken for the only one")
        if self.options.masks and counts["regions"] and counts["rectangles"] == counts["regions"]:
            self.notices.append(
                "all regions are the boxes themselves, so masks show boxes (masks=false leaves them out)"
            )
        return entries, counts["regions"] > 0

    def _checked(self, entry: Any, number: int, images: dict[int, _Image]) -> _Object:
        """Validate one annotation; `DataError` names it."""
        item = _parse(_Object, entry, self.path, "annotations", str(number))
        where = f"{self.path}: annotations.{number} (id {item.id})"
        if item.image_id not in images:
            raise DataError(f"{where}: image_id {item.image_id} is not in 'images'; add the image or remove this")
        if item.category_id not in self.number:
            raise DataError(
                f"{where}: category_id {item.category_id} is not in 'categories'; add the category or remove this"
            )
        if item.bbox is None and not (item.polygons or item.runs):
            raise DataError(f"{self.path}: annotations.{number}.bbox: field required, as it has no region either")
        return item

    def _resolve(self, image: _Image) -> Path | None:
        """The file of an image; its `file_name` becomes the path in the folder of images."""
        try:
            path = self.listed.find(image.file_name, f"{self.path}: image {image.id}")
        except DataError as error:
            self.bad.setdefault(image.id, []).insert(0, str(error))
            return None
        image.file_name = path.relative_to(self.root).as_posix()
        return path

    @property
    def splits(self) -> dict[str, int]:
        """Split -> number of samples."""
        return {split: len(images) for split, images in self.images.items()}

    @staticmethod
    def _captions(path: Path, images: dict[int, _Image]) -> dict[int, str]:
        """Image id -> its first caption; captions of images that are not in the instances file are ignored."""
        contents = _parse(_Captions, read_json(path), path)
        others = {image.id for image in contents.images}
        captions: dict[int, str] = {}
        for number, values in enumerate(contents.annotations):
            entry = _parse(_Caption, values, path, "annotations", str(number))
            if entry.image_id in images:
                captions.setdefault(entry.image_id, entry.caption)
            elif entry.image_id not in others:
                raise DataError(
                    f"{path}: annotations.{number}: image_id {entry.image_id} is neither in 'images' nor in the "
                    "instances file; give the JSON that belongs to it"
                )
        if not captions:
            raise DataError(
                f"{path}: no caption belongs to an image of the instances file; give the JSON that belongs to it"
            )
        return captions

    def origin(self, split: str, number: int) -> str:
        """The image file."""
        return str(self.root / self.images[split][number].file_name)

    def make(self, split: str, number: int) -> Sample:
        """Make the sample of one image."""
        image = self.images[split][number]
        if problems := self.bad.get(image.id):
            raise DataError("; ".join(problems))
        path = self.root / image.file_name
        data = read_image(path)
        width, height = size_of(path, data)
        self._check_size(image, width, height)
        compressed = self.objects.get(image.id)
        items = OBJECTS.validate_json(zlib.decompress(compressed)) if compressed else []
        objects: list[AnnotatedObject] = []
        boxes: list[list[float]] = []
        for item in items:
            try:
                objects.append(self._object(item, width, height))
                # the box of a crowd is not that of a single object
                boxes += [] if item.iscrowd else boxes_of(objects[-1:], width, height)
            except ValueError as error:
                problems = [*(problems or []), f"{self.path}: annotation {item.id} of image {image.id}: {error}"]
        if problems:
            raise DataError("; ".join(problems))
        return Sample(
            key=key_of(PurePosixPath(image.file_name).with_suffix("").as_posix()),
            image=data,
            mask=mask_of(objects, height, width) if self.mask_classes else None,
            boxes=boxes,
            labels=sorted({item.label for item in objects}),
            caption=self.captions.get(image.id) or None,
        )

    def _check_size(self, image: _Image, width: int, height: int) -> None:
        if (image.width or width, image.height or height) != (width, height):
            raise DataError(
                f"{self.root / image.file_name}: {width}x{height} pixels, but {image.width}x{image.height} in "
                f"{self.path.name} (image {image.id}); use the image that was annotated, neither resized nor rotated"
            )

    def _object(self, item: _Object, width: int, height: int) -> AnnotatedObject:
        """An object as it is rendered; `ValueError` if its region is invalid."""
        pixels = None
        if item.runs:
            parts = [_pixels(runs, height, width) for runs in item.runs]
            parts += [coco_masks.polygon(points, height, width) for points in item.polygons]
            pixels = np.logical_or.reduce(parts)
        for points in item.polygons:
            coco_masks.check_points(points)
        left, top, box_width, box_height = item.bbox or (0, 0, 0, 0)
        return AnnotatedObject(
            self.number[item.category_id],
            box=(left, top, left + box_width, top + box_height) if item.bbox else None,
            polygons=item.polygons,
            pixels=pixels,
            unknown=item.iscrowd,
        )


def _pixels(runs: _Runs, height: int, width: int) -> NDArray[np.bool_]:
    """`[H,W]`: the pixels in run lengths; `ValueError` if they are not of this size."""
    if runs.size != (height, width):
        raise ValueError(f"a segmentation of {runs.size[1]}x{runs.size[0]}, its image has {width}x{height}")
    lengths = coco_masks.run_lengths(runs.counts) if isinstance(runs.counts, str) else runs.counts
    return coco_masks.runs(lengths, height, width)
