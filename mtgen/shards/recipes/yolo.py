"""yolo: a data set for Ultralytics' YOLO or Darknet: boxes or polygons in one text file per image."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml
from pydantic import Field

from mtgen.config import ConfigSection
from mtgen.errors import DataError
from mtgen.shards.annotated import AnnotatedImage, AnnotatedObject, AnnotatedRecipe
from mtgen.shards.input_files import IMAGE_SUFFIXES, read_names, read_text
from mtgen.shards.input_names import SPLIT_WORDS, LeftAlone, ListedFiles, files_below, split_folders
from mtgen.shards.labels_beside import coordinates_in
from mtgen.shards.listing import CERTAIN, LIKELY, Listing, Proposal
from mtgen.shards.recipe import RECIPES

YAML_SUFFIXES = (".yaml", ".yml")
SPLIT_KEYS = {word: split for split, words in SPLIT_WORDS.items() for word in words}
"""Keys of a data.yaml or .data file that name images -> the split they become."""

PRECEDENCE = ("train", "test", "val", None)
"""Splits that an image belongs to if several name it: those of coco128 train, and val is often the same as test."""

BOX_NUMBERS = 5
"""Numbers in the line of a box: class, center x and y, width, height."""

EDGE_TOLERANCE = 0.01
"""How far a coordinate may be outside 0 to 1, as a fraction of the image: rounding, and boxes beyond the edge."""


class YoloOptions(ConfigSection):
    """Options of the recipe `yolo`."""

    data: str = Field(
        min_length=1,
        description="data.yaml or .data file, or its folder; or a folder with classes.txt, images and labels",
    )
    masks: bool = Field(True, description="make masks from the polygons, if there are any")
    test: float = Field(0.1, ge=0, lt=1, description="fraction held out, unless the data names test or val images")


@RECIPES.register("yolo")
class YoloRecipe(AnnotatedRecipe):
    """One sample per image, with the boxes and polygons of its text file; an image without one has no objects.

    A line is `class x y width height`, or `class x y x y x y ...` for a polygon, in fractions of the image's sides.
    The text file of images/x.jpg is labels/x.txt, or x.txt beside it. Source of the format:
    https://docs.ultralytics.com/datasets/detect/ and https://docs.ultralytics.com/datasets/segment/.
    """

    Options = YoloOptions

    def __init__(self, options: YoloOptions, seed: int) -> None:
        super().__init__(options, seed)
        self.file = find_data_file(Path(options.data))
        described = read_data_file(self.file)
        self.root, self.keypoints = described.root, described.keypoints
        self.classes, self.notices = described.names, described.notices
        self.listed = ListedFiles(self.root)
        images: dict[Path, AnnotatedImage] = {}
        for split, source in sorted(described.sources, key=lambda item: PRECEDENCE.index(item[0])):
            for path in self._images(source):
                images.setdefault(path, AnnotatedImage(path, self._name(path), label_path(path), split))
        self.faults = list(dict.fromkeys(self.faults))  # train and val are often the same list
        if not images:
            problem = self.faults[0] if self.faults else f"{self.file}: no image in the folders that it names"
            raise DataError(problem)
        self.notices += self.listed.notice()
        labels = [image.labels for image in images.values() if image.labels.is_file()]
        if not labels:
            first = next(iter(images.values()))
            raise DataError(
                f"{self.file}: no image has a text file of labels; the one of {first.path} would be {first.labels}"
            )
        if without := len(images) - len(labels):
            self.notices.append(f"{without:,} images without a text file of labels have no objects")
        self._count_unused({path.parent for path in labels}, set(labels))
        if {image.split for image in images.values()} <= {"train", None}:  # a part is held out for testing
            images = {path: replace(image, split=None) for path, image in images.items()}
        self.use(images.values(), [self.file, *labels], options.test)
        self.name_masks(options.masks, any(map(self._has_polygon, labels)), self.file)
        self.source = f"{self.root.name} (YOLO's format)"

    @classmethod
    def detect(cls, listing: Listing) -> list[Proposal]:
        """A data.yaml or .data file with names, or classes.txt beside images and labels."""
        if listing.path.is_file() and listing.path.suffix not in (*YAML_SUFFIXES, ".data"):
            return []
        try:
            file = find_data_file(listing.path)
            described = read_data_file(file)
        except DataError:
            return cls._unnamed(listing)
        splits = ", ".join(dict.fromkeys(split for split, _ in described.sources if split))
        reason = f"{file.name} of YOLO's format: {len(described.names)} classes" + (f", {splits}" if splits else "")
        return [Proposal({"data": str(listing.path)}, reason, LIKELY if file.name == "classes.txt" else CERTAIN)]

    @staticmethod
    def _unnamed(listing: Listing) -> list[Proposal]:
        """Labels whose classes have no names."""
        texts = [listing.head(file, 4096).decode("utf-8", "replace") for file in listing.with_suffix(".txt")[:20]]
        if not listing.path.is_dir() or not listing.with_suffix(*IMAGE_SUFFIXES) or not any(map(coordinates_in, texts)):
            return []
        reason = "labels of YOLO's format without names: first write these into classes.txt there, one per line"
        return [Proposal({"data": str(listing.path)}, reason, LIKELY)]

    def _images(self, source: Path) -> Iterator[Path]:
        """The images of a folder, or those that a text file lists; names that lead nowhere become faults."""
        if source.is_dir():
            for path in files_below(source, self.left_alone):
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    yield path
                elif path.suffix.lower() not in (".txt", ".cache", ".npy"):
                    self.left_alone.add("files that are not images", path.relative_to(source))
            return
        for number, line in enumerate(read_text(source).splitlines(), 1):
            if name := line.strip():
                try:
                    beside = (source.parent / name.removeprefix("./")).resolve()
                    yield beside if beside.is_file() else self._listed(name, f"{source}: line {number}")
                except DataError as error:
                    self.faults.append(str(error))

    def _listed(self, name: str, where: str) -> Path:
        """The image of a list; Darknet's lists begin at a folder `data` that an export does not have."""
        try:
            return self.listed.find(name, where)
        except DataError:
            if not name.startswith("data/"):
                raise
            return self.listed.find(name.removeprefix("data/"), where)

    def _count_unused(self, folders: set[Path], used: set[Path]) -> None:
        for path in (path for folder in sorted(folders) for path in sorted(folder.glob("*.txt")) if path not in used):
            if path.name != "classes.txt":
                self.left_alone.add("text files without an image", path.name)

    def _name(self, path: Path) -> str:
        within = path.relative_to(self.root) if path.is_relative_to(self.root) else Path(*path.parts[-3:])
        return within.with_suffix("").as_posix()

    def _has_polygon(self, path: Path) -> bool:
        """Whether a label file has the line of a polygon; the line is only checked when its sample is made."""
        return not self.keypoints and any(len(line.split()) > BOX_NUMBERS + 1 for line in read_text(path).splitlines())

    def objects(self, image: AnnotatedImage, width: int, height: int) -> list[AnnotatedObject]:
        """The objects in the image's label file; identical lines count once."""
        if not image.labels.is_file():
            return []
        found = []
        lines = dict.fromkeys(" ".join(line.split()) for line in read_text(image.labels).splitlines())
        for number, line in enumerate(lines, 1):
            if line:
                try:
                    found.append(self._object(line.split(), width, height))
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from None
        return found

    def _object(self, words: list[str], width: int, height: int) -> AnnotatedObject:
        try:
            label, *values = (float(word) for word in words)
        except ValueError:
            raise ValueError(f"{' '.join(words)[:60]!r} is not a list of numbers") from None
        if not label.is_integer() or not 0 <= label < len(self.classes):
            raise ValueError(f"class {words[0]}; {self.file.name} names the classes 0 to {len(self.classes) - 1}")
        if len(values) == BOX_NUMBERS or len(values) < BOX_NUMBERS - 1 or (len(values) % 2 and not self.keypoints):
            raise ValueError(
                f"{len(words)} numbers; a box has {BOX_NUMBERS} (class, center x, y, width, height) and a polygon "
                "its class and three or more pairs of x and y; remove confidences"
            )
        is_box = self.keypoints or len(values) == BOX_NUMBERS - 1
        coordinates = values[: BOX_NUMBERS - 1] if is_box else values
        if not all(math.isfinite(v) and -EDGE_TOLERANCE <= v <= 1 + EDGE_TOLERANCE for v in coordinates):
            raise ValueError(
                f"{' '.join(words)[:60]!r}: coordinates are fractions of the image's sides, from 0 to 1; "
                "divide pixels by its width and height"
            )
        if is_box:
            x, y, w, h = coordinates
            return AnnotatedObject(
                int(label), ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
            )
        points = [value * (height if i % 2 else width) for i, value in enumerate(coordinates)]
        return AnnotatedObject(int(label), polygons=[points])


@dataclass
class YoloData:
    """What a data file describes.

    Attributes:
        root: the folder of the data set.
        names: names of the classes.
        sources: split, or `None`, of each folder of images or text file that lists images.
        keypoints: whether the lines of labels have keypoints after their box.
        notices: what the file names and the data set does not have.
    """

    root: Path
    names: list[str]
    sources: list[tuple[str | None, Path]]
    keypoints: bool = False
    notices: list[str] = field(default_factory=list)


def find_data_file(path: Path) -> Path:
    """The data file itself, or the one in a folder: a YAML file with `names`, a .data file, or classes.txt.

    Raises:
        DataError: it does not exist, or the folder has none or several.
    """
    path = path.resolve()
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"data={path}: does not exist; give the data.yaml of the data set, or its folder")
    described = [
        file
        for file in sorted(path.iterdir())
        if file.suffix in YAML_SUFFIXES and isinstance(content := _load_yaml(file), dict) and "names" in content
    ]
    found = described or sorted(path.glob("*.data")) or [f for f in [path / "classes.txt"] if f.is_file()]
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "no data.yaml, .data file or classes.txt"
        raise DataError(f"data={path}: has {names}; give the file that describes the data set")
    return found[0]


def read_data_file(file: Path) -> YoloData:
    """Read a data.yaml, a Darknet .data file, or a classes.txt beside images and labels, in split folders or not."""
    if file.suffix in YAML_SUFFIXES:
        return _read_yaml(file)
    if file.suffix == ".data":
        return _read_darknet(file)
    root = file.parent / "images" if (file.parent / "images").is_dir() else file.parent
    files = files_below(root, LeftAlone())
    found = [path.relative_to(root) for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise DataError(f"{file}: has no images beside it; give the data.yaml, or the folder with both")
    folders = split_folders(root, found)
    outer = root.joinpath(*found[0].parts[: folders.outer])
    sources: list[tuple[str | None, Path]] = [(split, outer / name) for name, split in folders.splits.items()]
    return YoloData(file.parent, read_names(file), sources or [(None, root)])


def _load_yaml(file: Path) -> Any:
    try:
        # The loader that keeps every value as text: a class called `no` is not `False`.
        return yaml.load(read_text(file), Loader=yaml.BaseLoader)  # noqa: S506 - it constructs nothing but text
    except yaml.YAMLError as error:
        raise DataError(f"{file}: not valid YAML ({' '.join(str(error).split())})") from None


def _read_yaml(file: Path) -> YoloData:
    content = _load_yaml(file)
    if not isinstance(content, dict) or not content.get("names"):
        raise DataError(f"{file}: has no 'names'; write the names of the classes, such as names: [cat, dog]")
    names = _names(content["names"], file)
    if str(content.get("nc", "")).isdecimal() and int(content["nc"]) != len(names):
        raise DataError(f"{file}: nc is {content['nc']}, but names has {len(names)} classes; correct one of them")
    root = file.parent
    if path := content.get("path"):  # relative to this file or, as Ultralytics has it, to the folder of data sets
        places = [root / str(path), root.parent / str(path), root.parent / Path(str(path)).name]
        root = next((place.resolve() for place in places if place.is_dir()), root)
    sources: list[tuple[str | None, Path]] = []
    notices = []
    for key, split in SPLIT_KEYS.items():
        values = content.get(key)
        for value in values if isinstance(values, list) else [values] if values else []:
            # exports name a folder `test` that they do not have
            if found := _source(str(value), [root, file.parent], f"{file}: {key}", missing=split == "test"):
                sources.append((split, found))
            else:
                notices.append(
                    f"{file.name} names {value!r} for {key}, which does not exist: there is no split {split}"
                )
    if not sources:
        raise DataError(f"{file}: names no images; write for example train: images/train")
    return YoloData(root, names, sources, bool(content.get("kpt_shape")), notices)


def _names(value: Any, file: Path) -> list[str]:
    """The class names of a list, or of a mapping of their numbers."""
    if isinstance(value, dict):
        if set(value) != {str(number) for number in range(len(value))}:
            keys = ", ".join(list(value)[:20])
            raise DataError(f"{file}: names has the keys {keys}; number the classes 0 to {len(value) - 1}")
        value = [value[str(number)] for number in range(len(value))]
    if not isinstance(value, list) or not value:
        raise DataError(f"{file}: names has to be a list of class names, or a mapping of numbers to them")
    names = [str(name).strip() for name in value]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{file}: names has {repeated[0]!r} twice; every class needs its own name")
    return names


def _read_darknet(file: Path) -> YoloData:
    """Read `key = value` lines: names, train, valid. Their paths begin at this file, or at a folder above it."""
    pairs = (line.partition("=") for line in read_text(file).splitlines() if "=" in line)
    content = {key.strip(): value.strip() for key, _, value in pairs}
    folders = [file.parent, *file.parents[1:4]]
    if "names" not in content:
        raise DataError(f"{file}: has no 'names'; name the file of the class names, such as names = obj.names")
    if (listed := _source(content["names"], folders, f"{file}: names")) is None:
        raise DataError(f"{file}: names={content['names']!r} does not exist; correct it")
    names = read_names(listed)
    sources: list[tuple[str | None, Path]] = []
    for key, split in SPLIT_KEYS.items():
        if key in content and (found := _source(content[key], folders, f"{file}: {key}", missing=key != "train")):
            sources.append((split, found))
    if not sources:
        raise DataError(f"{file}: names no images; write for example train = train.txt")
    return YoloData(file.parent, names, sources)


def _source(text: str, folders: list[Path], where: str, missing: bool = False) -> Path | None:
    """The folder or list that a data file names; `None` if it may be missing, and is."""
    found = next((path for path in possible_paths(text, folders) if path.exists()), None)
    if found is None and not missing:
        raise DataError(f"{where}: {text!r} does not exist in {folders[0]}; correct it")
    return found


def possible_paths(text: str, folders: list[Path]) -> Iterator[Path]:
    """Where a path in a data file may be: from each folder, as written or without its leading folders.

    Those are only removed where the path is of another system (D:\\data\\images, /content/images), or begins with `..`
    (Roboflow's `../train/images` is meant from the folder train) or Darknet's `data`.
    """
    path = PureWindowsPath(text) if "\\" in text or text[1:2] == ":" else PurePosixPath(text)
    parts = path.relative_to(path.anchor).parts
    if path.is_absolute():
        yield Path(text)
        removable = len(parts) - 1
    else:
        removable = next((i for i, part in enumerate(parts) if part != ".."), 0) or int(parts[:1] == ("data",))
    for first in range(removable + 1):
        for folder in folders:
            yield (folder / Path(*parts[first:])).resolve()


def label_path(image: Path) -> Path:
    """The label file of an image: with the last folder `images` replaced by `labels`, or beside the image."""
    parts = list(image.parts)
    beside = image.with_suffix(".txt")
    if "images" not in parts[:-1]:
        return beside
    last = len(parts) - 1 - parts[::-1].index("images")
    path = Path(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt")
    return path if path.is_file() or not beside.is_file() else beside
