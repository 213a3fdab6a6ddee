"""hf: a local Hugging Face data set: Parquet files, a folder of `save_to_disk`, or images with metadata.jsonl."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, field_validator

from mtgen.config import ConfigSection
from mtgen.errors import DataError
from mtgen.registry import suggest
from mtgen.schema import IGNORE_INDEX
from mtgen.shards.input_files import as_stored, clipped, file_state, held_out, read_names, read_text, size_of
from mtgen.shards.input_names import split_named
from mtgen.shards.listing import CERTAIN, Listing, Proposal
from mtgen.shards.recipe import RECIPES, UNNAMED_CLASS_PREFIX, Recipe
from mtgen.shards.write import Sample

COLUMNS = {  # what a column holds -> names that it usually has
    "image": ("image", "img", "pixel_values", "jpg", "png"),
    "label": ("label", "labels", "class", "fine_label", "coarse_label", "cls"),
    "objects": ("objects", "annotations"),
    "mask": ("mask", "annotation", "segmentation", "segmentation_mask", "semantic_segmentation"),
    "caption": ("caption", "captions", "text", "prompt", "sentences"),
    "sound": ("audio", "sound"),
}
BOX_FIELDS = ("bbox", "boxes", "bboxes", "box")
CATEGORY_FIELDS = ("category", "categories", "category_id", "label", "labels", "class")


class HfOptions(ConfigSection):
    """Options of the recipe `hf`."""

    root: str = Field(
        min_length=1, description="folder with Parquet files, of save_to_disk, or with metadata.jsonl files"
    )
    image: str | None = Field(
        None, description="column of images; default: a column of a usual name, or of the type Image"
    )
    label: str | None = Field(None, description="column of class numbers or names, or of lists of them")
    objects: str | None = Field(None, description="column of objects, with bbox and category")
    boxes: Literal["xywh", "xyxy"] = Field(
        "xywh", description="bbox: left, top, width, height; or left, top, right, bottom"
    )
    mask: str | None = Field(None, description="column of masks, images whose values are mask classes")
    caption: str | None = Field(None, description="column of captions; of a list, the first is taken")
    sound: str | None = Field(None, description="column of sounds, WAV or FLAC")
    classes: list[str] = Field(
        [], description="names of the classes, or a text file of them; default: those in the data"
    )
    mask_classes: list[str] = Field([], description="names of the mask classes, or a text file of them")
    test: float = Field(0.1, ge=0, lt=1, description="fraction held out, if there is only one split")

    @field_validator("mask_classes", "classes", mode="before")
    @classmethod
    def _from_file(cls, value: Any) -> Any:
        return read_names(Path(value)) if isinstance(value, str) else value


@dataclass(frozen=True)
class _Block:
    """Consecutive rows of a file: a row group of a Parquet file, or all of an Arrow or metadata file."""

    path: Path
    group: int
    rows: int


@RECIPES.register("hf")
class HfRecipe(Recipe):
    """One sample per row. Images that are JPEG, PNG or WebP are stored unchanged, others as PNG.

    Columns are found by their names and, in files that the package `datasets` wrote, by their types, which also name
    the classes. Source of the formats: https://huggingface.co/docs/datasets/ (repository structure, image datasets).
    """

    Options = HfOptions
    licence = ""

    def __init__(self, options: HfOptions, seed: int) -> None:
        super().__init__(options, seed)
        self.root = Path(options.root).resolve()
        if not self.root.is_dir():
            raise DataError(f"root={options.root}: the folder does not exist; give the one of the data set")
        blocks = _blocks(self.root)
        first = next(iter(blocks.values()))[0]
        self.features = _features(first.path)
        self.columns = self._columns(_read(first.path, first.group).column_names)
        self.rows = self._assign(blocks)
        self.classes = options.classes or self._class_names(blocks)
        self.mask_classes = options.mask_classes or self._mask_names(blocks)
        self.sources = [file_state(path) for path in dict.fromkeys(b.path for found in blocks.values() for b in found)]
        self.source = f"{self.root.name} (Hugging Face's format)"

    @classmethod
    def detect(cls, listing: Listing) -> list[Proposal]:
        """Parquet files, Arrow files beside a state.json, or metadata.jsonl."""
        if listing.path.is_file():
            return []
        arrow = listing.with_suffix(".arrow") if listing.named("state.json") else []
        found = listing.with_suffix(".parquet") or arrow or listing.named("metadata.jsonl")
        if not found:
            return []
        reason = f"{len(found)} files such as {found[0]}, as Hugging Face's data sets have"
        return [Proposal({"root": str(listing.path)}, reason, CERTAIN)]

    def _columns(self, names: list[str]) -> dict[str, str]:
        """What a column holds -> its name."""
        found = {}
        for kind, usual in COLUMNS.items():
            if (wanted := getattr(self.options, kind)) is not None:
                if wanted not in names:
                    raise DataError(f"{self.root}: {kind}={wanted}: no column has this name; {suggest(wanted, names)}")
                found[kind] = wanted
            elif known := [name for name in usual if name in names]:
                found[kind] = known[0]
        typed = [name for name in names if _type(self.features.get(name)) == "Image"]
        found.setdefault("image", typed[0] if typed else "file_name" if "file_name" in names else "")
        if not found["image"]:
            raise DataError(
                f"{self.root}: no column of images; name it with image=COLUMN; possible: {', '.join(names)}"
            )
        return found

    def _assign(self, blocks: dict[str, list[_Block]]) -> dict[str, list[tuple[_Block, int, str]]]:
        """Split -> (block, row, key) of its samples; if there is only one, `test` is the fraction held out."""
        rows: dict[str, list[tuple[_Block, int, str]]] = {}
        for name, found in blocks.items():
            numbered = enumerate((block, row) for block in found for row in range(block.rows))
            rows[name] = [(block, row, f"{name}-{number:08d}") for number, (block, row) in numbered]
        if len(rows) == 1:
            ((name, only),) = rows.items()
            chosen = held_out(self.seed, [key for _, _, key in only], self.options.test)
            rows = {name: [item for item in only if item[2] not in chosen]}
            rows.setdefault("test", []).extend(item for item in only if item[2] in chosen)
            rows = {split: items for split, items in rows.items() if items}
        return {split: rows[split] for split in ("train", "val", "test") if split in rows}

    def _class_names(self, blocks: dict[str, list[_Block]]) -> list[str]:
        """Names of the classes: of ClassLabel columns or, without them, the values in the data in order."""
        declared = [
            _class_label(self.features.get(self.columns[kind])) for kind in ("label", "objects") if kind in self.columns
        ]
        if names := list(dict.fromkeys(name for found in declared for name in found)):
            return names
        values: set[Any] = set()
        for kind in ("label", "objects"):
            if kind in self.columns:
                for value in self._values(blocks, self.columns[kind]):
                    found = _categories(value) if kind == "objects" else value if isinstance(value, list) else [value]
                    values.update(item for item in found if item is not None)
        if values and all(isinstance(value, int) for value in values):
            return [f"{UNNAMED_CLASS_PREFIX}{number}" for number in range(max(values) + 1)]
        return sorted(map(str, values))

    def _mask_names(self, blocks: dict[str, list[_Block]]) -> list[str]:
        """Numbered names up to the largest value in the masks."""
        largest = -1
        if "mask" in self.columns:
            for value in self._values(blocks, self.columns["mask"]):
                if (mask := self._mask(value, self.columns["mask"])) is not None:
                    largest = max(largest, int(mask[mask != IGNORE_INDEX].max(initial=0)))
        return [f"{UNNAMED_CLASS_PREFIX}{number}" for number in range(largest + 1)]

    def _values(self, blocks: dict[str, list[_Block]], column: str) -> Iterator[Any]:
        for found in blocks.values():
            for block in found:
                yield from _read(block.path, block.group)[column].to_pylist()

    @property
    def splits(self) -> dict[str, int]:
        """Split -> number of samples."""
        return {split: len(rows) for split, rows in self.rows.items()}

    def origin(self, split: str, number: int) -> str:
        """The file and the row in it."""
        block, row, _ = self.rows[split][number]
        return f"{block.path}: row {row}" + (f" of row group {block.group}" if block.group else "")

    def make(self, split: str, number: int) -> Sample:
        """Make the sample of one row."""
        block, row, key = self.rows[split][number]
        cells = (
            _read(block.path, block.group)
            .slice(row, 1)
            .select(list(dict.fromkeys(self.columns.values())))
            .to_pylist()[0]
        )
        values = {kind: cells[column] for kind, column in self.columns.items()}
        where = self.origin(split, number)
        data = as_stored(where, self._bytes(values["image"], where))
        caption = values.get("caption")
        caption = caption[0] if isinstance(caption, list) and caption else caption
        sound = values.get("sound")
        sample = Sample(
            key=key,
            image=data,
            mask=self._mask(values.get("mask"), where),
            caption=(caption.strip() or None) if isinstance(caption, str) else None,
            sound=None if sound is None else self._bytes(sound, where),
        )
        label = values.get("label")
        if isinstance(label, list):
            sample.labels = sorted({self._number(item, where) for item in label})
        elif label is not None and label != -1:  # -1: a row of a test split without labels
            sample.label = self._number(label, where)
        if values.get("objects") is not None:
            width, height = size_of(Path(where), data)
            sample.boxes = self._boxes(values["objects"], width, height, where)
            sample.labels = sorted({*(sample.labels or []), *(int(box[4]) for box in sample.boxes)})
        return sample

    def _number(self, value: Any, where: str) -> int:
        """The number of a class that a cell names; `DataError` if it is unknown."""
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(self.classes):
            return value
        if str(value) in self.classes:
            return self.classes.index(str(value))
        raise DataError(f"{where}: unknown class {value!r}; {suggest(str(value), self.classes[:20])}")

    def _boxes(self, objects: Any, width: int, height: int, where: str) -> list[list[float]]:
        corners, categories = _fields(objects, BOX_FIELDS), _categories(objects)
        if len(corners) != len(categories):
            raise DataError(f"{where}: {len(corners)} boxes and {len(categories)} categories; give each object both")
        boxes = []
        for box, category in zip(corners, categories, strict=True):
            if not isinstance(box, list) or len(box) != 4:
                raise DataError(f"{where}: a box is {box!r}; it needs four numbers")
            x, y, right, bottom = (float(value) for value in box)
            if self.options.boxes == "xywh":
                right, bottom = x + right, y + bottom
            try:
                if found := clipped((x, y, right, bottom), width, height):
                    boxes.append([*found, self._number(category, where)])
            except ValueError as error:
                raise DataError(f"{where}: {error}; if bbox is left, top, right, bottom, write boxes=xyxy") from None
        return boxes

    def _bytes(self, value: Any, where: str) -> bytes:
        """The bytes of an Image or Audio cell: in the cell, or in a file that it names."""
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, value)
        if isinstance(data, bytes):
            return data
        if isinstance(path, str):
            for file in (Path(where.partition(":")[0]).parent / path, self.root / path):
                if file.is_file() and file.resolve().is_relative_to(self.root):
                    return file.read_bytes()
            raise DataError(
                f"{where}: the file {path!r} is not in {self.root}; restore it, or embed files in the data set"
            )
        raise DataError(f"{where}: has no image or sound in its cell ({str(value)[:40]!r}); remove the row")

    def _mask(self, value: Any, where: str) -> NDArray[np.uint8] | None:
        if value is None:
            return None
        try:
            with Image.open(io.BytesIO(self._bytes(value, where))) as picture:
                pixels = np.asarray(picture)
        except OSError as error:
            raise DataError(f"{where}: damaged mask ({error})") from None
        if pixels.ndim != 2 or pixels.max(initial=0) > 255:
            raise DataError(f"{where}: its mask is {pixels.dtype} {list(pixels.shape)}; it needs one channel of 8 bits")
        return pixels.astype(np.uint8)


def _blocks(root: Path) -> dict[str, list[_Block]]:
    """Split -> its rows in order; `DataError` if the folder is not a data set."""
    found: dict[str, list[_Block]] = {}
    parquet = sorted(path for path in root.rglob("*.parquet") if not path.name.startswith("."))
    arrow = sorted(path for path in root.rglob("*.arrow") if not path.name.startswith(("cache-", ".")))
    metadata = sorted(path for path in root.rglob("metadata.jsonl"))
    for path in parquet or arrow or metadata:
        split = _split_of(path.relative_to(root))
        found.setdefault(split, []).extend(_Block(path, group, rows) for group, rows in enumerate(_sizes(path)))
    if not any(block.rows for blocks in found.values() for block in blocks):
        raise DataError(
            f"root={root}: no Parquet, Arrow or metadata.jsonl file with rows in it; give the folder that "
            "`huggingface-cli download` or `save_to_disk` wrote"
        )
    return found


def _sizes(path: Path) -> list[int]:
    """Number of rows of each block of a file."""
    if path.suffix != ".parquet":
        return [_read(path, 0).num_rows]
    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]}); download it again")


def _split_of(path: Path) -> str:
    """The split that a file's name or folder says; train without one."""
    names = [path.name.partition("-")[0], *reversed(path.parent.parts)]  # "train-00000-of-00002.parquet"
    return next((split for name in names if (split := split_named(name))), "train")


@lru_cache(maxsize=4)
def _read(path: Path, group: int) -> pa.Table:
    """The rows of a block; of an Arrow file, they stay on disk until they are used."""
    try:
        if path.suffix == ".parquet":
            return pq.ParquetFile(path).read_row_group(group)
        if path.suffix == ".arrow":
            source = pa.memory_map(str(path))
            try:
                return pa.ipc.open_stream(source).read_all()
            except pa.ArrowInvalid:
                return pa.ipc.open_file(source).read_all()
        return pa.Table.from_pylist([json.loads(line) for line in read_text(path).splitlines() if line.strip()])
    except (pa.ArrowException, ValueError, OSError) as error:
        raise _unreadable(path, error) from None


def _features(path: Path) -> dict[str, Any]:
    """Column -> its type, as the package `datasets` stores them; empty if the file has none."""
    if path.suffix not in (".parquet", ".arrow"):
        return {}
    schema = pq.read_schema(path) if path.suffix == ".parquet" else _read(path, 0).schema
    stored = (schema.metadata or {}).get(b"huggingface")
    info = path.parent / "dataset_info.json"
    try:
        content = json.loads(stored)["info"] if stored else json.loads(read_text(info)) if info.is_file() else {}
        features = content.get("features") or {}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: its description of the columns is not valid JSON; save the data set again") from None
    return features if isinstance(features, dict) else {}


def _type(feature: Any) -> str:
    return str(feature.get("_type", "")) if isinstance(feature, dict) else ""


def _class_label(feature: Any) -> list[str]:
    """Names of the first ClassLabel in a column's type, also inside lists and structures."""
    if isinstance(feature, list):
        return next((names for item in feature if (names := _class_label(item))), [])
    if not isinstance(feature, dict):
        return []
    if _type(feature) == "ClassLabel":
        return [str(name) for name in feature.get("names") or []]
    return next((names for item in feature.values() if (names := _class_label(item))), [])


def _fields(objects: Any, names: tuple[str, ...]) -> list[Any]:
    """The values of a field of all objects, which are a list of structures or a structure of lists."""
    if isinstance(objects, dict):
        return next((objects[name] for name in names if isinstance(objects.get(name), list)), [])
    return [next((item[name] for name in names if name in item), None) for item in objects if isinstance(item, dict)]


def _categories(objects: Any) -> list[Any]:
    return _fields(objects, CATEGORY_FIELDS) if objects is not None else []
