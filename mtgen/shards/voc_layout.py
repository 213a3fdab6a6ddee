"""Finding the parts of a data set in PASCAL VOC's format: lists, images, annotations and masks."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from mtgen.errors import DataError
from mtgen.shards.input_files import IMAGE_SUFFIXES, read_text
from mtgen.shards.input_names import LeftAlone, ListedFiles, files_below, split_folders, split_named

_ENCODING = re.compile(rb"""^\s*<\?xml[^>]*encoding\s*=\s*["']([\w.-]+)["']""")
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "iso-8859-1": "cp1252", "latin-1": "cp1252"}
"""Encodings that files declare -> ones that contain them, and that such files really have."""


@dataclass(frozen=True)
class VocImage:
    """One image with its files.

    Attributes:
        path: the image.
        name: its path without suffix, as in the lists.
        xml, mask: its annotation and mask, if there are any.
        where: the list and the name in it, for errors.
    """

    path: Path
    name: str
    xml: Path | None
    mask: Path | None
    where: str


class VocLayout:
    """The images of a folder by their splits.

    They are those in the lists of ImageSets; without lists, those that have an XML, by their split folders if there are
    any.

    Args:
        root: the folder, or one with a single such folder in it.
        lists: name of the folder in ImageSets.
        hold_out: chooses the names for the test split where nothing says which they are.

    Attributes:
        images: split -> its images.
        faults: names in the lists that are not images, one line each.
        notices: what was decided, one line each.
        lists: the folder of the lists; `None` if there is none.

    Raises:
        DataError: there are neither lists nor annotations, or no image is in them.
    """

    def __init__(
        self, root: Path, lists: str, hold_out: Callable[[list[str]], set[str]], left_alone: LeftAlone
    ) -> None:
        self.faults: list[str] = []
        self.notices: list[str] = []
        self.root = self._year(root)
        self.lists: Path | None = self.root / "ImageSets" / lists
        found = self._lists(self.lists)
        if found:
            self.images = self._listed(found)
        else:
            self.images = self._all(hold_out, left_alone)
            self.lists = None

    def _year(self, root: Path) -> Path:
        """The folder with ImageSets in it: the given one, or the only one in it."""
        if (root / "ImageSets").is_dir() or not root.is_dir():
            return root
        inside = [path.parent for path in sorted(root.glob("*/ImageSets")) if path.is_dir()]
        if len(inside) > 1:
            raise DataError(f"root={root}: has {inside[0].name} and {inside[1].name}; give the folder of one year")
        if inside:
            self.notices.append(f"{inside[0].name} is the folder of the data set")
        return inside[0] if inside else root

    @staticmethod
    def _lists(folder: Path) -> dict[str, Path]:
        """Split -> its list; the list trainval counts if there is neither train nor val."""
        paths = sorted(folder.glob("*.[tT][xX][tT]")) if folder.is_dir() else []
        found = {split: path for path in paths if path.stem != "trainval" and (split := split_named(path.stem))}
        if not {"train", "val"} & found.keys():
            found |= dict([("train", path) for path in paths if path.stem == "trainval"])
        return {split: found[split] for split in ("train", "val", "test") if split in found}

    def _listed(self, lists: dict[str, Path]) -> dict[str, list[VocImage]]:
        listed = ListedFiles(self.root / "JPEGImages")
        images: dict[str, list[VocImage]] = {}
        for split, path in lists.items():
            for line in (line.strip() for line in read_text(path).splitlines()):
                if line:
                    try:
                        images.setdefault(split, []).append(self._image(listed, path, line))
                    except DataError as error:
                        self.faults.append(str(error))
        if not images and not self.faults:
            raise DataError(f"{self.lists}: all lists are empty; write image names into one of them")
        if not images:
            raise DataError("\n".join(self.faults[:5]))
        self.notices += listed.notice()
        return images

    def _image(self, listed: ListedFiles, source: Path, line: str) -> VocImage:
        where = f"{source}: {line!r}"
        try:
            path = listed.find(line, where, IMAGE_SUFFIXES)  # names with spaces, as labelImg allows
        except DataError:
            line = line.split()[0]  # the lists of a single class have a second column
            where = f"{source}: {line!r}"
            path = listed.find(line, where, IMAGE_SUFFIXES)
        name = path.relative_to(self.root / "JPEGImages").with_suffix("").as_posix()
        return VocImage(path, name, self._file("Annotations", name, ".xml"), self._mask(name), where)

    def _mask(self, name: str) -> Path | None:
        return self._file("SegmentationClass", name, ".png")

    def _file(self, folder: str, name: str, suffix: str) -> Path | None:
        path = self.root / folder / f"{name}{suffix}"
        return path if path.is_file() else None

    def _all(self, hold_out: Callable[[list[str]], set[str]], left_alone: LeftAlone) -> dict[str, list[VocImage]]:
        """All images that have an XML of their name beside them, or anywhere if the name is unique."""
        files = files_below(self.root, left_alone)
        xml = [path for path in files if path.suffix.lower() == ".xml" and is_voc(path.read_bytes()[:4096])]
        pictures: dict[str, list[Path]] = {}
        for path in files:
            if path.suffix.lower() in IMAGE_SUFFIXES and path.parent.name not in (
                "SegmentationClass",
                "SegmentationObject",
            ):
                pictures.setdefault(path.stem, []).append(path)
        if not xml:
            raise DataError(
                f"root={self.root}: no train.txt, val.txt or test.txt in {self.lists}, and no XML of VOC's format; "
                "give the folder of one year, such as VOC2012"
            )
        found: list[VocImage] = []
        for path in xml:
            candidates = pictures.get(path.stem, [])
            beside = [picture for picture in candidates if picture.parent == path.parent] or candidates
            if len(beside) == 1:
                name = path.relative_to(self.root).with_suffix("").as_posix().removeprefix("Annotations/")
                found.append(VocImage(beside[0], name, path, self._mask(path.stem), str(path)))
            else:
                what = "two images have its name" if beside else "no image has its name"
                self.faults.append(f"{path}: {what}; give one, beside it or in JPEGImages")
        used = {image.path for image in found}
        for path in (path for paths in pictures.values() for path in paths if path not in used):
            left_alone.add("images without an XML", path.relative_to(self.root))
        return self._in_splits(found, hold_out)

    def _in_splits(self, found: list[VocImage], hold_out: Callable[[list[str]], set[str]]) -> dict[str, list[VocImage]]:
        if not found:
            raise DataError(self.faults[0])
        folders = split_folders(self.root, [image.path.relative_to(self.root) for image in found])
        chosen = set() if folders.splits else hold_out([image.name for image in found])
        images: dict[str, list[VocImage]] = {}
        for image in found:
            split = folders.split_of(image.path.relative_to(self.root))
            images.setdefault(split or ("test" if image.name in chosen else "train"), []).append(image)
        how = f"folders {', '.join(folders.splits)}" if folders.splits else "chosen by the hash of their names"
        self.notices.append(f"without lists in ImageSets: all images that have an XML; splits: {how}")
        return {split: images[split] for split in ("train", "val", "test") if split in images}


def is_voc(head: bytes) -> bool:
    """Whether an XML file with these first bytes is an annotation of VOC's format."""
    return re.search(rb"<annotation[\s>]", head) is not None


def parsed(data: bytes) -> Element:
    """Parse an XML document -> its root.

    Raises:
        ValueError: it is damaged, or has a DOCTYPE, whose entities could expand without limit.
    """

    def refuse(*_: object) -> None:
        raise ValueError("has a DOCTYPE, which annotations do not need; remove it")

    tree = TreeBuilder()
    match = _ENCODING.match(data)
    encoding = match[1].decode().lower() if match else ""
    try:
        if encoding not in ("", "utf-8", "utf8", "utf-16", "us-ascii"):  # expat knows few encodings, Python many
            data = data.decode(_WIDER.get(encoding, encoding)).encode()
            parser = expat.ParserCreate("utf-8")
        else:
            parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = refuse
        parser.StartElementHandler = tree.start
        parser.EndElementHandler = tree.end
        parser.CharacterDataHandler = tree.data
        parser.Parse(data, True)
    except LookupError:
        raise ValueError(f"not valid XML (unknown encoding {encoding!r}); save it in UTF-8") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not valid XML (not {encoding} at byte {error.start}); save it in UTF-8") from None
    except expat.ExpatError as error:
        raise ValueError(f"not valid XML ({error})") from None
    return tree.close()
