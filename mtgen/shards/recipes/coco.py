"""coco: images with the boxes, masks and captions of COCO's JSON files; image files are stored unchanged."""

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
from mtgen.shards.annotated import BACKGROUND, SPLIT_ORDER
from mtgen.shards.coco_layout import find_coco_files
from mtgen.shards.input_files import (
    clipped,
    file_state,
    held_out,
    key_of,
    read_image,
    read_json,
    size_of,
)
from mtgen.shards.input_names import LeftAlone, ListedFiles
from mtgen.shards.listing import CERTAIN, LIKELY, Listing, Proposal
from mtgen.shards.make import RECIPES, Recipe
from mtgen.shards.write import Sample

Text = Annotated[str, StringConstraints(strip_whitespace=True)]  # the constraint makes pydantic refuse invalid Unicode
PixelLength = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]


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
    width: int = Field(ge=1)
    height: int = Field(ge=1)


class _Category(BaseModel):
    id: int
    name: Text


class _Runs(BaseModel):
    size: tuple[int, int]
    counts: str | list[int]


class _Object(BaseModel):
    """One annotated object; `bbox` is left, top, width and height."""

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
OBJECTS = TypeAdapter(list[_Object])


def _parse(kind: type[Contents], values: Any, path: Path, *location: str) -> Contents:
    """Validate values from `location` in a file; `DataError` names the first problem."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join([*location, *map(str, first["loc"])][:3])  # annotations.7.bbox; deeper, it names our types
        problem = "not an object" if first["type"] == "model_type" else first["msg"][0].lower() + first["msg"][1:]
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


class _InstancesFile(Recipe):
    """The samples of one file of instances."""

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
        contents = _parse(_Instances, read_json(self.path), self.path)
        images = _by_id(self.path, "images", contents.images)
        if not images:
            raise DataError(f"{self.path}: its list of images is empty; give the JSON of the instances")
        categories = sorted(_by_id(self.path, "categories", contents.categories).values(), key=lambda c: c.id)
        self.number = {category.id: number for number, category in enumerate(categories)}
        self.classes = [category.name for category in categories]
        entries, segmented = self._entries(contents.annotations, images)
        self.mask_classes = ["background", *self.classes] if options.masks and segmented else []
        if len(self.mask_classes) > IGNORE_INDEX:
            raise DataError(
                f"{self.path}: {len(categories)} categories, but a mask can only have {IGNORE_INDEX - 1}; "
                "masks=false leaves masks out"
            )
        # every process has all annotations; uncompressed, those of COCO's train2017 would take gigabytes in each
        self.objects = {image: zlib.compress(json.dumps(found).encode(), 1) for image, found in entries.items()}
        self.captions = self._captions(Path(options.captions).resolve(), images) if options.captions else {}
        self.images: dict[str, list[_Image]] = {}
        files = [self._resolve(image) for image in images.values()]
        chosen = held_out(seed, [image.file_name for image in images.values()], options.test)
        for image in images.values():
            split = options.split or ("test" if image.file_name in chosen else "train")
            self.images.setdefault(split, []).append(image)
        self.images = {split: self.images[split] for split in ("train", "val", "test") if split in self.images}
        json_files = [self.path, *([Path(options.captions)] if options.captions else [])]
        self.sources: Any = [file_state(path) for path in [*json_files, *files]]
        names = " and ".join(path.name for path in json_files)
        self.notices += self.listed.notice()
        self.source = f"images of {self.root.name}, annotations of {names} (COCO's format)"

    def _entries(self, annotations: list[Any], images: dict[int, _Image]) -> tuple[dict[int, list[Any]], bool]:
        """Validate the annotations: image id -> its annotations, and whether any has a segmentation."""
        entries: dict[int, list[Any]] = {}
        segmented = False
        for number, entry in enumerate(annotations):
            item = _parse(_Object, entry, self.path, "annotations", str(number))
            where = f"{self.path}: annotations.{number} (id {item.id})"
            if item.image_id not in images:
                raise DataError(f"{where}: image_id {item.image_id} is not in 'images'; add the image or remove this")
            if item.category_id not in self.number:
                raise DataError(
                    f"{where}: category_id {item.category_id} is not in 'categories'; add the category or remove this"
                )
            segmented = segmented or bool(item.segmentation)
            entries.setdefault(item.image_id, []).append(entry)
        return entries, segmented

    def _resolve(self, image: _Image) -> Path:
        """The file of an image; its `file_name` becomes the path in the folder of images."""
        path = self.listed.find(image.file_name, f"{self.path}: image {image.id}")
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
        data = read_image(self.root / image.file_name)
        self._check_size(image, data)
        compressed = self.objects.get(image.id)
        objects = OBJECTS.validate_json(zlib.decompress(compressed)) if compressed else []
        boxes = []
        for item in objects:
            left, top, width, height = item.bbox
            with self._naming(item):
                box = clipped((left, top, left + width, top + height), image.width, image.height)
            if box and not item.iscrowd:  # the box of a crowd is not that of a single object
                boxes.append([*box, self.number[item.category_id]])
        return Sample(
            key=key_of(PurePosixPath(image.file_name).with_suffix("").as_posix()),
            image=data,
            mask=self._mask(image, objects) if self.mask_classes else None,
            boxes=boxes,
            labels=sorted({self.number[item.category_id] for item in objects}),
            caption=self.captions.get(image.id) or None,
        )

    def _check_size(self, image: _Image, data: bytes) -> None:
        path = self.root / image.file_name
        size = size_of(path, data)
        if size != (image.width, image.height):
            raise DataError(
                f"{path}: {size[0]}x{size[1]} pixels, but {image.width}x{image.height} in {self.path.name} "
                f"(image {image.id}); use the image that was annotated, neither resized nor rotated"
            )

    @contextmanager
    def _naming(self, item: _Object) -> Iterator[None]:
        """Turn a `ValueError` in the `with` block into a `DataError` that names the annotation."""
        try:
            yield
        except ValueError as error:
            raise DataError(f"{self.path}: annotation {item.id} of image {item.image_id}: {error}") from None

    def _mask(self, image: _Image, objects: list[_Object]) -> NDArray[np.uint8]:
        """`[H,W]`: class + 1 of each object, smaller objects in front.

        The class is 255 (unknown) in crowds, and in boxes without a segmentation.
        """
        mask = np.zeros((image.height, image.width), np.uint8)
        areas = [item.bbox[2] * item.bbox[3] if item.area is None else item.area for item in objects]
        for index in sorted(range(len(objects)), key=lambda index: -areas[index]):
            item = objects[index]
            unknown = item.iscrowd or not item.segmentation
            with self._naming(item):
                mask[_region(item, image)] = IGNORE_INDEX if unknown else self.number[item.category_id] + 1
        return mask


def _region(item: _Object, image: _Image) -> NDArray[np.bool_]:
    """`[H,W]`: the pixels of an object; `ValueError` if its segmentation is invalid."""
    segmentation = item.segmentation
    height, width = image.height, image.width
    if isinstance(segmentation, _Runs):
        if segmentation.size != (height, width):
            raise ValueError(
                f"a segmentation of {segmentation.size[1]}x{segmentation.size[0]}, its image has {width}x{height}"
            )
        counts = segmentation.counts
        return coco_masks.runs(coco_masks.run_lengths(counts) if isinstance(counts, str) else counts, height, width)
    if not segmentation:
        left, top, box_width, box_height = item.bbox
        right, bottom = left + box_width, top + box_height
        segmentation = [[left, top, right, top, right, bottom, left, bottom]]
    inside = np.zeros((height, width), np.bool_)
    for points in segmentation:
        inside |= coco_masks.polygon(points, height, width)
    return inside


@RECIPES.register("coco")
class CocoRecipe(Recipe):
    """One sample per image of the instances files, with boxes, labels, mask and the first caption.

    Classes are the categories in the order of their ids, numbered from 0; those of several files are united by their
    names. Source of the format: https://cocodataset.org/#format-data.
    """

    Options = CocoOptions
    licence = ""

    def __init__(self, options: CocoOptions, seed: int) -> None:
        super().__init__(options, seed)
        self.parts = [_InstancesFile(part, seed) for part in self._part_options()]
        self.classes = list(dict.fromkeys(name for part in self.parts for name in part.classes))
        masked = any(part.mask_classes for part in self.parts)
        self.mask_classes = [BACKGROUND, *self.classes] if masked else []
        self._refuse_repeated_images()
        self.counts: dict[str, list[tuple[int, int]]] = {}
        for split in SPLIT_ORDER:
            counts = [(number, part.splits[split]) for number, part in enumerate(self.parts) if split in part.splits]
            if counts:
                self.counts[split] = counts
        for part in self.parts:
            self.notices += part.notices
            self.faults += part.faults
        self.sources = [part.sources for part in self.parts]
        self.source = "; ".join(part.source for part in self.parts)

    def _refuse_repeated_images(self) -> None:
        """Raise `DataError` if two files of instances list the same image: which of them is right?"""
        listed: dict[Path, str] = {}
        for part in self.parts:
            for image in (image for images in part.images.values() for image in images):
                if (other := listed.setdefault(part.root / image.file_name, part.path.name)) != part.path.name:
                    raise DataError(
                        f"root={self.options.root}: {other} and {part.path.name} both list {image.file_name}; give "
                        "images= and instances= of one of them"
                    )

    def _part_options(self) -> list[CocoOptions]:
        """Options of each file of instances."""
        if self.options.root is None:
            return [self.options]
        root = Path(self.options.root).resolve()
        if not root.is_dir():
            raise DataError(f"root={self.options.root}: the folder does not exist; give the one of the data set")
        found = find_coco_files(root, self.left_alone)
        common = {"masks": self.options.masks}
        return [
            CocoOptions(
                images=str(files.images),
                instances=str(files.instances),
                captions=str(files.captions) if files.captions else None,
                **common,
                **({"split": files.split} if files.split else {"test": self.options.test}),
            )
            for files in found
        ]

    @classmethod
    def detect(cls, listing: Listing) -> list[Proposal]:
        """A folder with JSON files of instances, or one such file."""
        if listing.path.is_file():
            return []
        try:
            found = find_coco_files(listing.path, LeftAlone())
        except DataError:
            return []
        names = [str(files.instances.relative_to(listing.path)) for files in found]
        if len({(files.images, files.split) for files in found}) == len(found):
            return [Proposal({"root": str(listing.path)}, f"instances in COCO's format: {', '.join(names)}", CERTAIN)]
        return [  # several files of the same images, of which one is to be chosen
            Proposal(
                {"images": str(files.images), "instances": str(files.instances)}, f"{name} in COCO's format", LIKELY
            )
            for files, name in zip(found, names, strict=True)
        ]

    @property
    def splits(self) -> dict[str, int]:
        """Split -> number of samples."""
        return {split: sum(count for _, count in counts) for split, counts in self.counts.items()}

    def _locate(self, split: str, number: int) -> tuple[_InstancesFile, int]:
        """The file of instances that a sample is in, and its number there."""
        for part, count in self.counts[split]:
            if number < count:
                return self.parts[part], number
            number -= count
        raise IndexError(number)

    def origin(self, split: str, number: int) -> str:
        """The image file."""
        part, number = self._locate(split, number)
        return part.origin(split, number)

    def make(self, split: str, number: int) -> Sample:
        """Make the sample of one image; with several files, its key has the folder of its images."""
        part, number = self._locate(split, number)
        sample = part.make(split, number)
        if len(self.parts) > 1:
            sample.key = key_of(
                f"{part.root.name}/{PurePosixPath(part.images[split][number].file_name).with_suffix('')}"
            )
        if part.classes != self.classes:
            table = np.array([self.classes.index(name) for name in part.classes], np.int64)
            sample.labels = sorted(int(table[label]) for label in sample.labels or [])
            sample.boxes = [[*box[:4], int(table[int(box[4])])] for box in sample.boxes or []]
            if sample.mask is not None:
                values = np.full(IGNORE_INDEX + 1, IGNORE_INDEX)
                values[0], values[1 : len(table) + 1] = 0, table + 1
                sample.mask = values[sample.mask].astype(np.uint8)
        return sample
