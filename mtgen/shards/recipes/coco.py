"""coco: images with the boxes, masks and captions of COCO's JSON files; image files are stored as they are."""

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, StringConstraints, TypeAdapter, ValidationError, model_validator

from mtgen.config import ConfigSection
from mtgen.errors import DataError
from mtgen.schema import IGNORE_INDEX
from mtgen.shards import coco_masks
from mtgen.shards.input_files import clipped, key_of, read_image, read_json, resolve_listed, share, size_of, state
from mtgen.shards.make import RECIPES, Recipe
from mtgen.shards.write import Sample

Text = Annotated[
    str, StringConstraints(strip_whitespace=True)
]  # having a rule, it is refused where it is no Unicode text
PixelLength = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]


class CocoOptions(ConfigSection):
    """Options of the recipe `coco`."""

    images: str = Field(min_length=1, description="folder of the images that the JSON names")
    instances: str = Field(
        min_length=1, description="JSON with images, categories and annotations (boxes, segmentations)"
    )
    captions: str | None = Field(None, description="JSON with captions of the same images")
    masks: bool = Field(True, description="draw masks from the segmentations")
    split: Literal["train", "val", "test"] | None = Field(None, description="the one split that all samples belong to")
    test: float = Field(0.1, ge=0, lt=1, description="share split off for the test split, where `split` is not given")

    @model_validator(mode="after")
    def _one_rule(self) -> "CocoOptions":
        if self.split and "test" in self.model_fields_set:
            raise ValueError(
                f"split={self.split} takes all samples, which leaves no share for test={self.test:g}; give one of the two"
            )
        return self


class _Image(BaseModel):
    id: int
    file_name: str = Field(min_length=1)
    width: int = Field(ge=1)
    height: int = Field(ge=1)


class _Category(BaseModel):
    id: int
    name: Text


class _Runs(BaseModel):
    size: tuple[int, int]
    counts: str | list[int]


class _Thing(BaseModel):
    """One annotated thing; `bbox` is left, top, width and height."""

    id: int | None = None
    image_id: int
    category_id: int
    bbox: tuple[PixelLength, PixelLength, PixelLength, PixelLength]
    area: float | None = None
    iscrowd: bool = False
    segmentation: _Runs | list[list[PixelLength]] | None = None


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
THINGS = TypeAdapter(list[_Thing])


def _judged(kind: type[Contents], values: Any, path: Path, *place: str) -> Contents:
    """`values`, from `place` in a file, as a `kind`; `DataError` names the first thing that is wrong with them."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join([*place, *map(str, first["loc"])][:3])  # annotations.7.bbox; deeper, it names our own types
        what = "not an object" if first["type"] == "model_type" else first["msg"][0].lower() + first["msg"][1:]
        remedy = (
            "" if "." in where else f"; the file has to be an object with the lists {' and '.join(kind.model_fields)}"
        )
        raise DataError(f"{path}: {where + ': ' if where else ''}{what}{remedy}") from None


def _by_id(path: Path, what: str, entries: list[Identified]) -> dict[int, Identified]:
    found: dict[int, Identified] = {}
    for entry in entries:
        if entry.id in found:
            raise DataError(f"{path}: two {what} have the id {entry.id}")
        found[entry.id] = entry
    return found


@RECIPES.register("coco")
class CocoRecipe(Recipe):
    """One sample an image that the instances name: boxes, labels, mask and the first caption.

    Classes are the categories by rising id, numbered from 0. Source of the format: https://cocodataset.org/#format-data.
    """

    Options = CocoOptions
    licence = ""

    def __init__(self, options: CocoOptions, seed: int) -> None:
        super().__init__(options, seed)
        self.path = Path(options.instances).resolve()
        self.root = Path(options.images).resolve()
        if not self.root.is_dir():
            raise DataError(f"images={options.images}: there is no such folder; give the one that holds the images")
        contents = _judged(_Instances, read_json(self.path), self.path)
        images = _by_id(self.path, "images", contents.images)
        categories = sorted(
            _by_id(self.path, "categories", contents.categories).values(), key=lambda category: category.id
        )
        if not images:
            raise DataError(f"{self.path}: names no images")
        self.number = {category.id: number for number, category in enumerate(categories)}
        self.classes = [category.name for category in categories]
        entries: dict[int, list[Any]] = {}
        drawn = False
        for number, entry in enumerate(contents.annotations):
            thing = _judged(_Thing, entry, self.path, "annotations", str(number))
            where = f"{self.path}: annotations.{number} (id {thing.id})"
            if thing.image_id not in images:
                raise DataError(f"{where}: image_id {thing.image_id} is none of the file's images")
            if thing.category_id not in self.number:
                raise DataError(f"{where}: category_id {thing.category_id} is none of the file's categories")
            drawn = drawn or bool(thing.segmentation)
            entries.setdefault(thing.image_id, []).append(entry)
        self.mask_classes = ["background", *self.classes] if options.masks and drawn else []
        if len(self.mask_classes) > IGNORE_INDEX:
            raise DataError(
                f"{self.path}: {len(categories)} categories, and a mask has room for {IGNORE_INDEX - 1}; masks=false leaves masks out"
            )
        # every process gets all annotations: as they are, those of COCO's train2017 would take gigabytes in each
        self.things = {image: zlib.compress(json.dumps(found).encode(), 1) for image, found in entries.items()}
        self.captions = self._captions(Path(options.captions).resolve(), images) if options.captions else {}
        self.images: dict[str, list[_Image]] = {}
        for image in images.values():
            split = options.split or ("test" if share(seed, image.file_name) < options.test else "train")
            self.images.setdefault(split, []).append(image)
        self.images = {split: self.images[split] for split in ("train", "val", "test") if split in self.images}
        files = [
            resolve_listed(self.root, image.file_name, f"{self.path}: image {image.id}") for image in images.values()
        ]
        texts = [self.path, *([Path(options.captions)] if options.captions else [])]
        self.sources: Any = [state(path) for path in [*texts, *files]]
        self.source = (
            f"images of {self.root.name}, annotations of {' and '.join(path.name for path in texts)} (COCO's format)"
        )

    @property
    def splits(self) -> dict[str, int]:
        """Split -> number of samples."""
        return {split: len(images) for split, images in self.images.items()}

    @staticmethod
    def _captions(path: Path, images: dict[int, _Image]) -> dict[int, str]:
        """Image id -> its first caption; those of images that the instances do not have are left out."""
        contents = _judged(_Captions, read_json(path), path)
        others = {image.id for image in contents.images}
        captions: dict[int, str] = {}
        for number, values in enumerate(contents.annotations):
            entry = _judged(_Caption, values, path, "annotations", str(number))
            if entry.image_id in images:
                captions.setdefault(entry.image_id, entry.caption)
            elif entry.image_id not in others:
                raise DataError(
                    f"{path}: annotations.{number}: image_id {entry.image_id} is none of the file's images, nor of the instances'"
                )
        if not captions:
            raise DataError(
                f"{path}: no caption in it is of an image of the instances; give the JSON that belongs to them"
            )
        return captions

    def origin(self, split: str, number: int) -> str:
        """The image file."""
        return str(self.root / self.images[split][number].file_name)

    def make(self, split: str, number: int) -> Sample:
        """The sample of one image."""
        image = self.images[split][number]
        data = read_image(resolve_listed(self.root, image.file_name, f"{self.path}: image {image.id}"))
        self._same_size(image, data)
        packed = self.things.get(image.id)
        things = THINGS.validate_json(zlib.decompress(packed)) if packed else []
        boxes = []
        for thing in things:
            left, top, width, height = thing.bbox
            with self._named(thing):
                box = clipped((left, top, left + width, top + height), image.width, image.height)
            if box and not thing.iscrowd:  # a crowd's box is not that of one thing
                boxes.append([*box, self.number[thing.category_id]])
        return Sample(
            key=key_of(PurePosixPath(image.file_name).with_suffix("").as_posix()),
            image=data,
            mask=self._mask(image, things) if self.mask_classes else None,
            boxes=boxes,
            labels=sorted({self.number[thing.category_id] for thing in things}),
            caption=self.captions.get(image.id) or None,
        )

    def _same_size(self, image: _Image, data: bytes) -> None:
        path = self.root / image.file_name
        size = size_of(path, data)
        if size != (image.width, image.height):
            raise DataError(
                f"{path}: {size[0]}x{size[1]}, and {self.path.name} says {image.width}x{image.height} "
                f"(image {image.id}); its annotations are of another size of it, or of it turned"
            )

    @contextmanager
    def _named(self, thing: _Thing) -> Iterator[None]:
        """A `ValueError` in the `with` block becomes a `DataError` that names the annotation."""
        try:
            yield
        except ValueError as error:
            raise DataError(f"{self.path}: annotation {thing.id} of image {thing.image_id}: {error}") from None

    def _mask(self, image: _Image, things: list[_Thing]) -> NDArray[np.uint8]:
        """`[H,W]`: class + 1 of each thing, the smaller in front of the larger; 255 for crowds, and in boxes without a segmentation."""
        mask = np.zeros((image.height, image.width), np.uint8)
        areas = [thing.bbox[2] * thing.bbox[3] if thing.area is None else thing.area for thing in things]
        for index in sorted(range(len(things)), key=lambda index: -areas[index]):
            thing = things[index]
            unknown = thing.iscrowd or not thing.segmentation
            with self._named(thing):
                mask[_region(thing, image)] = IGNORE_INDEX if unknown else self.number[thing.category_id] + 1
        return mask


def _region(thing: _Thing, image: _Image) -> NDArray[np.bool_]:
    """`[H,W]`: where a thing is; `ValueError` says what is wrong with its segmentation."""
    shape = thing.segmentation
    height, width = image.height, image.width
    if isinstance(shape, _Runs):
        if shape.size != (height, width):
            raise ValueError(f"a segmentation of {shape.size[1]}x{shape.size[0]}, its image has {width}x{height}")
        return coco_masks.runs(
            coco_masks.run_lengths(shape.counts) if isinstance(shape.counts, str) else shape.counts, height, width
        )
    if not shape:
        left, top, wide, high = thing.bbox
        shape = [[left, top, left + wide, top, left + wide, top + high, left, top + high]]
    inside = np.zeros((height, width), np.bool_)
    for points in shape:
        inside |= coco_masks.polygon(points, height, width)
    return inside
