"""csv: a table of image files with classes, boxes, captions, masks and sounds; image files are stored unchanged."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from mtgen.config import ConfigSection
from mtgen.errors import DataError, summarize_lines
from mtgen.registry import suggest
from mtgen.schema import IGNORE_INDEX
from mtgen.shards.annotated import in_splits
from mtgen.shards.input_files import (
    IMAGE_SUFFIXES,
    clipped,
    file_state,
    key_of,
    read,
    read_image,
    read_mask,
    read_names,
    size_of,
)
from mtgen.shards.input_names import ListedFiles, split_named
from mtgen.shards.listing import LIKELY, Listing, Proposal
from mtgen.shards.recipe import MAX_PROBLEMS_SHOWN, RECIPES, UNNAMED_CLASS_PREFIX, Recipe
from mtgen.shards.write import Sample

COLUMNS = {  # what a column holds -> names that it may have, in lower case
    "image": (
        "image",
        "file",
        "filename",
        "file_name",
        "image_path",
        "filepath",
        "path",
        "image_file",
        "imageid",
        "image_id",
    ),
    "label": ("class", "label", "category", "class_name", "labelname", "label_name"),
    "caption": ("caption", "text", "description", "prompt"),
    "mask": ("mask", "mask_path", "mask_file", "segmentation"),
    "sound": ("sound", "audio", "sound_path", "audio_path"),
    "split": ("split", "subset", "set", "partition"),
}
BOX_COLUMNS = (("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max"), ("x1", "y1", "x2", "y2"))
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


class CsvOptions(ConfigSection):
    """Options of the recipe `csv`."""

    table: str = Field(min_length=1, description="file with a header, separated by commas, semicolons or tabs")
    root: str | None = Field(None, description="folder that its paths begin at; default: the folder of the table")
    image: str | None = Field(None, description="column of the image's path, with or without suffix")
    label: str | None = Field(None, description="column of the class: its name or number")
    caption: str | None = Field(None, description="column of the caption")
    mask: str | None = Field(None, description="column of the mask's path, a PNG of class numbers")
    sound: str | None = Field(None, description="column of the path of a WAV or FLAC file")
    split: str | None = Field(None, description="column of the split: train, val or test")
    boxes: list[str] = Field(
        [],
        max_length=4,
        description="columns of a box, left, top, right, bottom: one row per object, of the row's class",
    )
    fractions: bool | None = Field(
        None, description="whether boxes are fractions of the image's sides; default: if none is above 1"
    )
    classes: list[str] = Field(
        [], description="names of the classes, in order, or a text file of them; default: all, alphabetically"
    )
    names: str | None = Field(None, description="table of two columns: class in `table`, its name (Open Images)")
    mask_classes: list[str] = Field([], description="names of the mask classes, or a text file of them")
    test: float = Field(0.1, ge=0, lt=1, description="fraction held out, without a column of splits")

    @field_validator("mask_classes", "classes", mode="before")
    @classmethod
    def _from_file(cls, value: Any) -> Any:
        return read_names(Path(value)) if isinstance(value, str) else value


@dataclass
class _Entry:
    """One image and what its rows say; empty or `None` where they say nothing."""

    image: Path
    name: str
    split: str | None
    line: int
    labels: list[str] = field(default_factory=list)
    boxes: list[tuple[int, str, list[str]]] = field(default_factory=list)  # line, class, corners
    caption: str = ""
    mask: Path | None = None
    sound: Path | None = None


@RECIPES.register("csv")
class CsvRecipe(Recipe):
    """One sample per image of the table. An image of several rows has the classes, or the boxes, of all of them.

    Columns are found by their names, such as image, file or filename, class or label, caption, mask, sound, split, and
    xmin, ymin, xmax, ymax; the options name others.
    """

    Options = CsvOptions
    licence = ""

    def __init__(self, options: CsvOptions, seed: int) -> None:
        super().__init__(options, seed)
        self.path = Path(options.table).resolve()
        self.root = Path(options.root).resolve() if options.root is not None else self.path.parent
        self.listed = ListedFiles(self.root)
        header, rows = read_table(self.path)
        self.columns = self._columns(header)
        self.box_columns = self._box_columns(header)
        if self.box_columns and "label" not in self.columns:
            raise DataError(
                f"{self.path}: boxes need a class; name its column, label=COLUMN; possible: {', '.join(header)}"
            )
        self.confidence = next((i for i, name in enumerate(header) if name.lower() == "confidence"), None)
        self.given_names = dict(row[:2] for _, row in read_rows(Path(options.names))) if options.names else {}
        entries = self._entries(rows)
        used = {name for entry in entries for name in [*entry.labels, *(name for _, name, _ in entry.boxes)]}
        self.classes = options.classes or _in_order(used)
        if unknown := sorted(used - set(self.classes)):
            raise DataError(
                f"{self.path}: the class {unknown[0]!r} is not in classes; {suggest(unknown[0], self.classes)}"
            )
        self.fractions = self._are_fractions(entries) if options.fractions is None else options.fractions
        masks = [entry.mask for entry in entries if entry.mask]
        self.mask_classes = options.mask_classes or _numbered(masks)
        self.entries = in_splits(seed, entries, options.test)
        self.notices += [*self._column_notice(header), *self.listed.notice()]
        files = [f for entry in entries for f in (entry.image, entry.mask, entry.sound) if f is not None]
        self.sources = [file_state(path) for path in [self.path, *files]]
        self.source = f"images of {self.root.name}, table {self.path.name}"

    @classmethod
    def detect(cls, listing: Listing) -> list[Proposal]:
        """Tables whose header has a column of images; Roboflow's and Open Images' among them."""
        found = []
        for file in listing.with_suffix(".csv", ".tsv")[:20]:
            header = listing.head(file, 4096).decode("utf-8-sig", "replace").partition("\n")[0].strip().lower()
            names = {name.strip(' "') for name in header.replace(";", ",").replace("\t", ",").split(",")}
            if len(names) > 1 and names & set(COLUMNS["image"]):
                path = listing.root / file
                found.append(Proposal({"table": str(path)}, f"{file} has the columns {header[:120]}", LIKELY))
        return found

    def _columns(self, header: list[str]) -> dict[str, int]:
        """What a column holds -> its number; `DataError` if an option names none, or there are no images."""
        lower = [name.lower() for name in header]
        found = {}
        for kind, names in COLUMNS.items():
            if (wanted := getattr(self.options, kind)) is not None:
                if wanted not in header:
                    raise DataError(f"{self.path}: {kind}={wanted}: no column has this name; {suggest(wanted, header)}")
                found[kind] = header.index(wanted)
            elif known := [name for name in names if name in lower]:
                found[kind] = lower.index(known[0])
        if "image" not in found:
            raise DataError(
                f"{self.path}: no column of images; name it with image=COLUMN; possible: {', '.join(header)}"
            )
        return found

    def _box_columns(self, header: list[str]) -> list[int]:
        if self.options.boxes:
            if len(self.options.boxes) != 4 or (missing := [name for name in self.options.boxes if name not in header]):
                problem = f"no column {missing[0]!r}" if len(self.options.boxes) == 4 else "not four columns"
                raise DataError(f"{self.path}: boxes: {problem}; give left, top, right, bottom of {', '.join(header)}")
            return [header.index(name) for name in self.options.boxes]
        lower = [name.lower() for name in header]
        found = next((names for names in BOX_COLUMNS if set(names) <= set(lower)), ())
        return [lower.index(name) for name in found]

    def _entries(self, rows: list[tuple[int, list[str]]]) -> list[_Entry]:
        """One entry per image, in the order of the table; rows that cannot be used become faults."""
        entries: dict[str, _Entry] = {}
        for line, row in rows:
            try:
                self._add(entries, line, row)
            except DataError as error:
                self.faults.append(str(error))
        if not entries:
            empty = f"{self.path}: has no rows after its header; write one row per image"
            raise DataError("\n".join(summarize_lines(self.faults, MAX_PROBLEMS_SHOWN)) or empty)
        return list(entries.values())

    def _add(self, entries: dict[str, _Entry], line: int, row: list[str]) -> None:
        cells = {kind: row[number].strip() for kind, number in self.columns.items()}
        where = f"{self.path}: line {line}"
        if (entry := entries.get(cells["image"])) is None:
            image = self._file(cells["image"], where, IMAGE_SUFFIXES)
            name = image.relative_to(self.root).with_suffix("").as_posix()
            entry = entries[cells["image"]] = _Entry(image, name, self._split(cells.get("split"), where), line)
        if self.confidence is not None and _number(row[self.confidence]) == 0:
            return  # Open Images: a person has verified that the class is not in the image
        label = self.given_names.get(cells.get("label", ""), cells.get("label", ""))
        corners = [row[number].strip() for number in self.box_columns]
        if any(corners):
            entry.boxes.append((line, label, corners))
        elif label and label not in entry.labels:
            entry.labels.append(label)
        entry.caption = entry.caption or cells.get("caption", "")
        for kind, suffixes in (("mask", (".png",)), ("sound", (".wav", ".flac"))):
            if cells.get(kind) and getattr(entry, kind) is None:
                setattr(entry, kind, self._file(cells[kind], where, suffixes))

    def _file(self, name: str, where: str, suffixes: Sequence[str]) -> Path:
        """The file that a cell names, with or without its suffix; `DataError` if there is none."""
        if not name:
            raise DataError(f"{where}: names no image; remove the row")
        if Path(name).suffix.lower() in VIDEO_SUFFIXES:
            raise DataError(f"{where}: {name} is a video; save its frames as images, for example with ffmpeg")
        return self.listed.find(name, where, suffixes)

    def _split(self, word: str | None, where: str) -> str | None:
        if word is not None and (split := split_named(word)) is None:
            raise DataError(f"{where}: the split {word!r}; {suggest(word, ['train', 'val', 'test'])}")
        return None if word is None else split

    def _column_notice(self, header: list[str]) -> list[str]:
        """A line on what each column is taken for."""
        taken = [f"{kind} from {header[number]!r}" for kind, number in self.columns.items()]
        if self.box_columns:
            unit = "fractions of the image" if self.fractions else "pixels"
            taken.append(f"boxes from {', '.join(repr(header[number]) for number in self.box_columns)} in {unit}")
        used = {*self.columns.values(), *self.box_columns, *([] if self.confidence is None else [self.confidence])}
        unused = [name for number, name in enumerate(header) if number not in used]
        return [f"columns: {'; '.join(taken)}" + (f"; not used: {', '.join(unused)}" if unused else "")]

    def _are_fractions(self, entries: list[_Entry]) -> bool:
        """Whether no coordinate of any box is above 1, as in Open Images; other cells are found later."""
        texts = [text for entry in entries for _, _, corners in entry.boxes for text in corners]
        return bool(texts) and all(_number(text) <= 1 for text in texts if math.isfinite(_number(text)))

    @property
    def splits(self) -> dict[str, int]:
        """Split -> number of samples."""
        return {split: len(entries) for split, entries in self.entries.items()}

    def origin(self, split: str, number: int) -> str:
        """The image file."""
        return str(self.entries[split][number].image)

    def make(self, split: str, number: int) -> Sample:
        """Make the sample of one image; one class without boxes is its class, several are its labels."""
        entry = self.entries[split][number]
        image = read_image(entry.image)
        boxes = self._boxes(entry, *size_of(entry.image, image)) if self.box_columns else None
        labels = sorted({self.classes.index(name) for name in entry.labels})
        labels = sorted({*labels, *(int(box[4]) for box in boxes)}) if boxes is not None else labels
        single = boxes is None and len(labels) == 1
        return Sample(
            key=key_of(entry.name),
            image=image,
            label=labels[0] if single else None,
            mask=read_mask(entry.mask) if entry.mask else None,
            boxes=boxes,
            labels=labels if labels and not single else None,
            caption=entry.caption or None,
            sound=read(entry.sound) if entry.sound else None,
        )

    def _boxes(self, entry: _Entry, width: int, height: int) -> list[list[float]]:
        boxes = []
        for line, name, corners in entry.boxes:
            where = f"{self.path}: line {line}"
            values = [_number(text) for text in corners]
            if not all(map(math.isfinite, values)) or not name:
                raise DataError(
                    f"{where}: a box of {', '.join(corners)} and class {name!r}; it needs four numbers and a class"
                )
            if self.fractions:
                values = [value * (height if i % 2 else width) for i, value in enumerate(values)]
            try:
                if box := clipped(values, width, height):
                    boxes.append([*box, self.classes.index(name)])
            except ValueError as error:
                raise DataError(f"{where}: {error}") from None
        return boxes


def read_table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read a table -> (names of its columns, rows with the number of their line).

    Raises:
        DataError: it has no header, a name twice, or a row of another length.
    """
    rows = read_rows(path)
    if not rows:
        raise DataError(f"{path}: is empty; write a header such as image,class,caption and one row per image")
    header = [name.strip() for name in rows[0][1]]
    if repeated := [name for name in header if header.count(name) > 1]:
        raise DataError(f"{path}: two columns are called {repeated[0]!r}; rename one")
    if wrong := [
        f"{path}: line {n}: {len(row)} cells for {len(header)} columns" for n, row in rows if len(row) != len(header)
    ]:
        remedy = "put quotes around cells with the separator"
        raise DataError("\n".join(f"{line}; {remedy}" for line in summarize_lines(wrong, MAX_PROBLEMS_SHOWN)))
    return header, rows[1:]


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Read the rows that are not empty, with the number of their last line; the first line decides the separator."""
    if not path.is_file():
        raise DataError(f"{path}: does not exist; give a table with a header, such as image,class,caption")
    try:
        text = read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; save the table in UTF-8") from None
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}; correct its quotes") from None


def _in_order(names: set[str]) -> list[str]:
    """Class names in alphabetical order; numbers by value."""
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def _numbered(masks: Sequence[Path]) -> list[str]:
    """Names for all mask classes up to the largest value in the masks."""
    largest = -1
    for path in dict.fromkeys(masks):
        values = read_mask(path)
        largest = max(largest, int(values[values != IGNORE_INDEX].max(initial=0)))
    return [f"{UNNAMED_CLASS_PREFIX}{number}" for number in range(largest + 1)]


def _number(text: str) -> float:
    """A number; NaN if the text is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
