"""voc: a folder in PASCAL VOC's format, with boxes in XML and palette masks; image files are stored unchanged."""

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
    IMAGE_SUFFIXES,
    clipped,
    file_state,
    key_of,
    read,
    read_image,
    read_mask,
    read_text,
    size_of,
)
from mtgen.shards.input_names import ListedFiles
from mtgen.shards.make import RECIPES, Recipe
from mtgen.shards.write import Sample

CLASSES = [  # in the order of the mask values, from 1
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
VOC_SPLITS = ("train", "val", "test")


class VocOptions(ConfigSection):
    """Options of the recipe `voc`."""

    root: str = Field(min_length=1, description="folder with JPEGImages, Annotations, SegmentationClass and ImageSets")
    lists: Literal["Main", "Segmentation"] = Field(
        "Main", description="folder in ImageSets with the lists train, val and test, which become the splits"
    )
    classes: list[str] = Field(
        CLASSES,
        min_length=1,
        max_length=IGNORE_INDEX - 1,
        description="names of the classes, in the order of the mask values",
    )


@RECIPES.register("voc")
class VocRecipe(Recipe):
    """One sample per name in the lists, with boxes and labels of its XML, and its mask of SegmentationClass, if any.

    Images in the lists train and val need an XML (with `lists=Segmentation`: a mask); test images may lack it, as in
    VOC2012. Source: Everingham and Winn 2012, "The PASCAL Visual Object Classes Challenge 2012 Development Kit".
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
                f"root={options.root}: no train.txt, val.txt or test.txt in {lists}; "
                "give the folder of one year, such as VOC2012"
            )
        self.classes = options.classes
        self.listed = ListedFiles(self.root / "JPEGImages")
        self.files: dict[str, list[Path]] = {}
        for split in found:
            if files := [
                self._image(lists / f"{split}.txt", line)
                for line in read_text(lists / f"{split}.txt").splitlines()
                if line.strip()
            ]:
                self.files[split] = files
        if not self.files:
            raise DataError(f"{lists}: all lists are empty; write image names into one of them")
        self.xml = self._matching("Annotations", ".xml")
        self.masks = self._matching("SegmentationClass", ".png")
        if options.lists == "Segmentation":
            self._require(self.masks, self.root / "SegmentationClass", lists)
        else:
            self._require(self.xml, self.root / "Annotations", lists)
        self.mask_classes = ["background", *self.classes] if self.masks else []
        self.notices += self.listed.notice()
        self.source = f"{self.root.name}, lists of ImageSets/{options.lists} (PASCAL VOC's format)"
        images = [file for files in self.files.values() for file in files]
        self.sources = [file_state(path) for path in [*images, *self.xml.values(), *self.masks.values()]]

    @property
    def splits(self) -> dict[str, int]:
        """Split -> number of samples."""
        return {split: len(files) for split, files in self.files.items()}

    def _require(self, found: dict[Path, Path], folder: Path, lists: Path) -> None:
        """Raise `DataError` if an image of the lists train and val has no file in `folder`."""
        for split in ("train", "val"):
            for file in self.files.get(split, []):
                if file not in found:
                    name = str(self._name(file))
                    raise DataError(f"{lists / split}.txt: {name!r} has no file in {folder}; add it or remove the name")

    def _name(self, file: Path) -> Path:
        """An image's name as in the lists."""
        return file.relative_to(self.root / "JPEGImages").with_suffix("")

    def _matching(self, folder: str, suffix: str) -> dict[Path, Path]:
        """Image -> the file with its name in another folder, for images that have one."""
        pairs = [
            (file, self.root / folder / f"{self._name(file)}{suffix}")
            for files in self.files.values()
            for file in files
        ]
        return {file: path for file, path in pairs if path.is_file()}

    def _image(self, source: Path, line: str) -> Path:
        line = line.strip()
        where = f"{source}: {line!r}"
        try:
            return self.listed.find(line, where, IMAGE_SUFFIXES)  # names with spaces, as labelImg allows
        except DataError:
            name = line.split()[0]  # the lists of a single class have a second column
            return self.listed.find(name, f"{source}: {name!r}", IMAGE_SUFFIXES)

    def origin(self, split: str, number: int) -> str:
        """The image file."""
        return str(self.files[split][number])

    def make(self, split: str, number: int) -> Sample:
        """Make the sample of one image."""
        file = self.files[split][number]
        data = read_image(file)
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
        """Boxes `[x0,y0,x1,y1,class]`, including difficult ones.

        Coordinates are 1-based and inclusive in the XML, 0-based and exclusive here.
        """
        try:
            root = parsed(read(path))
            size = [root.findtext(f"size/{side}") for side in ("width", "height")]
            if all(size) and [_number(value) for value in size] != [width, height]:
                raise ValueError(f"is for {size[0]}x{size[1]} pixels, but its image has {width}x{height}")
            boxes: list[list[float]] = []
            for element in root.findall("object"):
                name = (element.findtext("name") or "").strip()
                if name not in self.classes:
                    raise ValueError(f"unknown class {name!r}; {suggest(name, self.classes)}")
                left, top, right, bottom = (
                    _number(element.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
                )
                if box := clipped((left - 1, top - 1, right, bottom), width, height):
                    boxes.append([*box, self.classes.index(name)])
            return boxes
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None


def parsed(data: bytes) -> Element:
    """Parse an XML document -> its root.

    Raises:
        ValueError: it is damaged, or has a DOCTYPE, whose entities could expand without limit.
    """

    def refuse(*_: object) -> None:
        raise ValueError("has a DOCTYPE, which annotations do not need; remove it")

    tree = TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = tree.start
    parser.EndElementHandler = tree.end
    parser.CharacterDataHandler = tree.data
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError) as error:  # LookupError: an unknown encoding
        raise ValueError(f"not valid XML ({error})") from None
    return tree.close()


def _number(text: str | None) -> float:
    """Parse a finite number; `ValueError` if it is none."""
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{text!r} instead of a number in size or bndbox")
    return number
