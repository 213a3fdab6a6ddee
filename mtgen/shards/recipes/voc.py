"""voc: a folder in PASCAL VOC's format, with boxes in XML and palette masks; image files are stored unchanged."""

import math
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from mtgen.config import ConfigSection
from mtgen.errors import DataError
from mtgen.registry import suggest
from mtgen.schema import IGNORE_INDEX
from mtgen.shards.annotated import BACKGROUND
from mtgen.shards.input_files import (
    clipped,
    file_state,
    held_out,
    key_of,
    read,
    read_image,
    read_mask,
    read_names,
    size_of,
)
from mtgen.shards.listing import CERTAIN, LIKELY, Listing, Proposal
from mtgen.shards.recipe import RECIPES, Recipe
from mtgen.shards.voc_layout import VocImage, VocLayout, is_voc, parsed
from mtgen.shards.write import Sample

CLASSES = [  # in the order of the mask values, from 1
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]


class VocOptions(ConfigSection):
    """Options of the recipe `voc`."""

    root: str = Field(min_length=1, description="folder with JPEGImages, Annotations, SegmentationClass and ImageSets")
    lists: Literal["Main", "Segmentation"] = Field(
        "Main", description="folder in ImageSets with the lists train, val and test, which become the splits"
    )
    classes: list[str] | None = Field(
        None,
        min_length=1,
        max_length=IGNORE_INDEX - 1,
        description="names of the classes, in the order of the mask values, or a text file of them; default: VOC's "
        "twenty or, if the annotations have others, those in alphabetical order",
    )
    test: float = Field(0.1, ge=0, lt=1, description="fraction of the samples in the test split, if there are no lists")

    @field_validator("classes", mode="before")
    @classmethod
    def _from_file(cls, value: Any) -> Any:
        return read_names(Path(value)) if isinstance(value, str) else value


@RECIPES.register("voc")
class VocRecipe(Recipe):
    """One sample per name in the lists, with boxes and labels of its XML, and its mask of SegmentationClass, if any.

    Images in the lists train and val need an XML (with `lists=Segmentation`: a mask); test images may lack it, as in
    VOC2012. Without lists, samples are the images that have an XML. Source: Everingham and Winn 2012, "The PASCAL
    Visual Object Classes Challenge 2012 Development Kit".
    """

    Options = VocOptions
    licence = ""

    def __init__(self, options: VocOptions, seed: int) -> None:
        super().__init__(options, seed)
        root = Path(options.root).resolve()
        layout = VocLayout(root, options.lists, lambda names: held_out(seed, names, options.test), self.left_alone)
        self.root, self.lists, self.images = layout.root, layout.lists, layout.images
        self.notices += layout.notices
        self.faults += layout.faults
        images = [image for images in self.images.values() for image in images]
        masked = any(image.mask for image in images)
        self.classes = options.classes or self._classes(images, masked)
        self.mask_classes = [BACKGROUND, *self.classes] if masked else []
        lists = f", lists of ImageSets/{options.lists}" if self.lists else ""
        self.source = f"{self.root.name}{lists} (PASCAL VOC's format)"
        files = [path for image in images for path in (image.path, image.xml, image.mask) if path is not None]
        self.sources = [file_state(path) for path in files]

    def _classes(self, images: list[VocImage], masked: bool) -> list[str]:
        """The classes in the annotations: VOC's twenty, if there are no others."""
        counts: Counter[str] = Counter()
        for path in (image.xml for image in images if image.xml is not None):
            try:
                found = parsed(read(path)).findall("object")
            except ValueError:
                continue  # the sample reports it
            counts.update((element.findtext("name") or "").strip() for element in found)
        names = sorted(name for name in counts if name)
        if not set(names) - set(CLASSES):
            return CLASSES
        other = next(name for name in names if name not in CLASSES)
        if masked:
            raise DataError(
                f"root={self.options.root}: its annotations have the class {other!r}, which is not one of VOC's, and "
                "it has masks; give classes=, a list or a text file of names in the order of the mask values from 1"
            )
        if len(names) > IGNORE_INDEX - 1:
            raise DataError(f"root={self.options.root}: {len(names)} classes; at most {IGNORE_INDEX - 1} are possible")
        self.notices.append(f"classes are those of the annotations, since {other!r} is not one of VOC's twenty")
        folded = Counter(name.casefold() for name in names)
        if similar := [name for name in names if folded[name.casefold()] > 1]:
            self.notices.append(f"names of classes that only differ in case: {', '.join(similar)}")
        return names

    @property
    def splits(self) -> dict[str, int]:
        """Split -> number of samples."""
        return {split: len(images) for split, images in self.images.items()}

    @classmethod
    def detect(cls, listing: Listing) -> list[Proposal]:
        """A folder of XML files in VOC's format."""
        xml = listing.with_suffix(".xml")
        sampled = [file for file in xml[:20] if is_voc(listing.head(file, 4096))]
        if not sampled or not listing.path.is_dir():
            return []
        lists = [file for file in listing.files if "ImageSets" in file.parts]
        options: dict[str, Any] = {"root": str(listing.path)}
        if any("Segmentation" in file.parts for file in lists) and not any("Main" in file.parts for file in lists):
            options["lists"] = "Segmentation"
        what = f"{len(xml):,} XML files in VOC's format" + (", lists in ImageSets" if lists else "")
        return [Proposal(options, what, CERTAIN if len(sampled) == len(xml[:20]) else LIKELY)]

    def origin(self, split: str, number: int) -> str:
        """The image file."""
        return str(self.images[split][number].path)

    def _require(self, split: str, image: VocImage) -> None:
        """Raise `DataError` if an image of the lists train and val lacks its annotation, or mask."""
        folder = "SegmentationClass" if self.options.lists == "Segmentation" else "Annotations"
        found = image.mask if self.options.lists == "Segmentation" else image.xml
        if found is None and split != "test" and self.lists is not None:
            raise DataError(f"{image.where} has no file in {self.root / folder}; add it or remove the name")

    def make(self, split: str, number: int) -> Sample:
        """Make the sample of one image."""
        image = self.images[split][number]
        self._require(split, image)
        data = read_image(image.path)
        width, height = size_of(image.path, data)
        boxes = self._boxes(image.xml, width, height) if image.xml is not None else None
        return Sample(
            key=key_of(image.name),
            image=data,
            mask=read_mask(image.mask) if image.mask is not None else None,
            boxes=boxes,
            labels=None if boxes is None else sorted({int(box[4]) for box in boxes}),
        )

    def _boxes(self, path: Path, width: int, height: int) -> list[list[float]]:
        """Boxes `[x0,y0,x1,y1,class]`, including difficult ones.

        Coordinates are 1-based and inclusive in the XML, 0-based and exclusive here.
        """
        try:
            root = parsed(read(path))
            size = [root.findtext(f"size/{side}") for side in ("width", "height")]
            annotated = [_number(value) if value else 0 for value in size]  # some tools write 0
            if all(annotated) and annotated != [width, height]:
                raise ValueError(f"is for {size[0]}x{size[1]} pixels, but its image has {width}x{height}")
            boxes: list[list[float]] = []
            for element in root.findall("object"):
                name = (element.findtext("name") or "").strip()
                if name not in self.classes:
                    raise ValueError(f"unknown class {name!r}; {suggest(name, self.classes)}; classes= names others")
                left, top, right, bottom = (
                    _number(element.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
                )
                if box := clipped((left - 1, top - 1, right, bottom), width, height):
                    boxes.append([*box, self.classes.index(name)])
            return boxes
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None


def _number(text: str | None) -> float:
    """Parse a finite number; `ValueError` if it is none."""
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{text!r} instead of a number in size or bndbox")
    return number
