"""voc: a folder as the PASCAL VOC challenges have it, boxes in XML and masks with a palette; image files are stored as they are."""

import math
from pathlib import Path
from typing import Literal
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from pydantic import Field

from mtgen.config import ConfigSection
from mtgen.errors import DataError
from mtgen.registry import suggest
from mtgen.schema import IGNORE_INDEX
from mtgen.shards.input_files import (
    STORED_IMAGE_SUFFIXES,
    clipped,
    key_of,
    read,
    read_mask,
    read_text,
    resolve_listed,
    size_of,
    state,
)
from mtgen.shards.make import RECIPES, Recipe
from mtgen.shards.write import Sample

CLASSES = [  # in the order of the masks' values, from 1
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
VOC_SPLITS = ("train", "val", "test")


class VocOptions(ConfigSection):
    """Options of the recipe `voc`."""

    root: str = Field(min_length=1, description="folder with JPEGImages, Annotations, SegmentationClass and ImageSets")
    lists: Literal["Main", "Segmentation"] = Field(
        "Main", description="folder of ImageSets whose train, val and test lists are the splits"
    )
    classes: list[str] = Field(
        CLASSES, min_length=1, max_length=IGNORE_INDEX - 1, description="names of the classes, in the masks' order"
    )


@RECIPES.register("voc")
class VocRecipe(Recipe):
    """One sample a name in the lists: boxes and labels of its XML, mask of SegmentationClass where it has one.

    An image in the lists train and val has an XML (with `lists=Segmentation`: a mask); test images may be without, as in VOC2012.
    Source of the format: Everingham and Winn 2012, "The PASCAL Visual Object Classes Challenge 2012 Development Kit".
    """

    Options = VocOptions
    licence = ""

    def __init__(self, options: VocOptions, seed: int) -> None:
        super().__init__(options, seed)
        self.root = Path(options.root).resolve()
        lists = self.root / "ImageSets" / options.lists
        found = [split for split in VOC_SPLITS if (lists / f"{split}.txt").is_file()]
        if not found:
            raise DataError(
                f"root={options.root}: no train.txt, val.txt or test.txt in {lists}; give the folder of a year, such as VOC2012"
            )
        self.classes = options.classes
        self.files: dict[str, list[Path]] = {}
        for split in found:
            if files := [
                self._image(lists / f"{split}.txt", line)
                for line in read_text(lists / f"{split}.txt").splitlines()
                if line.strip()
            ]:
                self.files[split] = files
        if not self.files:
            raise DataError(f"{lists}: its lists are empty")
        self.xml = self._beside("Annotations", ".xml")
        self.masks = self._beside("SegmentationClass", ".png")
        needed, folder = (
            (self.masks, "SegmentationClass") if options.lists == "Segmentation" else (self.xml, "Annotations")
        )
        for split in ("train", "val"):
            for file in self.files.get(split, []):
                if file not in needed:
                    raise DataError(
                        f"{lists / split}.txt: {str(self._name(file))!r} has no file in {self.root / folder}"
                    )
        self.mask_classes = ["background", *self.classes] if self.masks else []
        self.source = f"{self.root.name}, lists of ImageSets/{options.lists} (PASCAL VOC's format)"
        images = [file for files in self.files.values() for file in files]
        self.sources = [state(path) for path in [*images, *self.xml.values(), *self.masks.values()]]

    @property
    def splits(self) -> dict[str, int]:
        """Split -> number of samples."""
        return {split: len(files) for split, files in self.files.items()}

    def _name(self, file: Path) -> Path:
        """An image's name as the lists have it."""
        return file.relative_to(self.root / "JPEGImages").with_suffix("")

    def _beside(self, folder: str, suffix: str) -> dict[Path, Path]:
        """Image -> the file of its name in another folder, where there is one."""
        pairs = [
            (file, self.root / folder / f"{self._name(file)}{suffix}")
            for files in self.files.values()
            for file in files
        ]
        return {file: path for file, path in pairs if path.is_file()}

    def _image(self, source: Path, line: str) -> Path:
        name = line.split()[0]  # lists of one class have a second column
        folder = self.root / "JPEGImages"
        there = [suffix for suffix in STORED_IMAGE_SUFFIXES if (folder / (name + suffix)).is_file()]
        return resolve_listed(folder, name + (there or [".jpg"])[0], f"{source}: {name!r}")

    def origin(self, split: str, number: int) -> str:
        """The image file."""
        return str(self.files[split][number])

    def make(self, split: str, number: int) -> Sample:
        """The sample of one image."""
        file = self.files[split][number]
        data = read(file)
        width, height = size_of(file, data)
        boxes = self._boxes(self.xml[file], width, height) if file in self.xml else None
        return Sample(
            key=key_of(self._name(file).as_posix()),
            image=data,
            mask=read_mask(self.masks[file]) if file in self.masks else None,
            boxes=boxes,
            labels=None if boxes is None else sorted({int(box[4]) for box in boxes}),
        )

    def _boxes(self, path: Path, width: int, height: int) -> list[list[float]]:
        """Rows of `[x0,y0,x1,y1,class]`, of difficult things too: 1-based and inclusive in the XML, 0-based and exclusive here."""
        try:
            root = parsed(read(path))
            size = [root.findtext(f"size/{side}") for side in ("width", "height")]
            if all(size) and [_number(value) for value in size] != [width, height]:
                raise ValueError(f"is of an image of {size[0]}x{size[1]}, and the image has {width}x{height}")
            boxes: list[list[float]] = []
            for thing in root.findall("object"):
                name = (thing.findtext("name") or "").strip()
                if name not in self.classes:
                    raise ValueError(f"class {name!r} is not among the classes; {suggest(name, self.classes)}")
                left, top, right, bottom = (
                    _number(thing.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
                )
                if box := clipped((left - 1, top - 1, right, bottom), width, height):
                    boxes.append([*box, self.classes.index(name)])
            return boxes
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None


def parsed(data: bytes) -> Element:
    """The root of an XML document; `ValueError` where it is damaged, or has a DOCTYPE, whose entities can grow without limit."""

    def refuse(*_: object) -> None:
        raise ValueError("has a DOCTYPE; annotations have none, take it out")

    tree = TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = tree.start
    parser.EndElementHandler = tree.end
    parser.CharacterDataHandler = tree.data
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError) as error:  # LookupError: an encoding that nobody knows
        raise ValueError(f"not readable as XML ({error})") from None
    return tree.close()


def _number(text: str | None) -> float:
    """A finite number; `ValueError` says what stands in its place."""
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{text!r} where a number is needed, in size or bndbox")
    return number
