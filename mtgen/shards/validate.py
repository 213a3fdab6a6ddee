"""Looking at every byte of a data set: decode all of it, and list everything that is wrong."""

import io
import json
import math
import os
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtgen.data.build import Progress
from mtgen.data.card import read_card, shard_names
from mtgen.data.picture import pixels
from mtgen.data.scan import Header, Problem, Sample
from mtgen.data.table import joined, rows, split_problems
from mtgen.schema import COMPONENTS, DatasetCard


@dataclass(frozen=True)
class Count:
    """What a split holds.

    Attributes:
        samples: how many could be read.
        components: "class", "mask", ... -> how many samples carry it.
        classes: class name -> how many samples are of it.
    """

    samples: int
    components: dict[str, int]
    classes: dict[str, int]


@dataclass(frozen=True)
class Report:
    """Everything that is wrong in a data set, and how much of it there is, by split."""

    folder: Path
    problems: list[Problem]
    splits: dict[str, Count]

    def text(self) -> str:
        """The report in lines: problems, then what each split holds."""
        lines = [str(problem) for problem in self.problems]
        for name, count in self.splits.items():
            carried = ", ".join(f"{number:,} with {component}" for component, number in count.components.items() if number)
            lines.append(f"{name}: {count.samples:,} samples" + (f", {carried}" if carried else ""))
        return "\n".join([*lines, f"{len(self.problems):,} problems" if self.problems else "no problems"])

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return {
            "folder": str(self.folder),
            "problems": [asdict(problem) for problem in self.problems],
            "splits": {name: asdict(count) for name, count in self.splits.items()},
        }


def validate(folder: str | Path, progress: Progress | None = None) -> Report:
    """Decode every component of every sample; threads take a shard each, as many as this process has CPUs.

    Raises:
        DataError: there is no `dataset.json` to judge the shards by, or it is not valid.
    """
    folder = Path(folder)
    card = read_card(folder)
    shards = [(split, name) for split in card.splits for name in shard_names(folder, card, split)]
    done, total = 0, sum(split.samples for split in card.splits.values())
    problems: list[Problem] = []
    tables: list[pa.Table] = []
    with ThreadPoolExecutor(min(len(shards), len(os.sched_getaffinity(0)))) as pool:
        work = [pool.submit(rows, folder / name, split, number, card, inspect) for number, (split, name) in enumerate(shards)]
        for shard in work:
            table, found = shard.result()
            tables.append(table)
            problems += found
            done += table.num_rows
            if progress is not None:
                progress(done, total)
    table = joined(tables)
    problems += split_problems(table, card, shards, problems)
    return Report(folder, problems, {split: _count(table, split, card) for split in card.splits})


def _count(table: pa.Table, split: str, card: DatasetCard) -> Count:
    part = table.filter(pc.equal(table["split"].cast(pa.string()), split))
    label = part["label"].to_numpy()
    return Count(
        samples=part.num_rows,
        components={name: int((part[f"{name}_offset"].to_numpy() >= 0).sum()) for name in COMPONENTS},
        classes={name: int((label == number).sum()) for number, name in enumerate(card.classes)},
    )


def inspect(sample: Sample, header: Header, card: DatasetCard) -> list[str]:
    """What is wrong with a sample that its headers do not show."""
    problems: list[str] = []
    if "image" in sample.parts and header.width > 0:
        problems += _undecodable("image", sample.parts["image"].data)
    if "mask" in sample.parts and card.mask_classes:
        problems += _mask(sample.parts["mask"].data, card)
    if "boxes" in sample.parts:
        problems += _boxes(sample.parts["boxes"].data, header, card)
    if "caption" in sample.parts:
        try:
            sample.parts["caption"].data.decode("utf-8")
        except UnicodeDecodeError as error:
            problems.append(f"caption: not UTF-8 at byte {error.start}; write captions in UTF-8")
    if "sound" in sample.parts:
        problems += _sound(sample.parts["sound"].suffix, sample.parts["sound"].data)
    return problems


def _undecodable(what: str, data: bytes) -> list[str]:
    try:
        pixels(data)
    except ValueError as error:
        return [f"{what}: {error}"]
    return []


def _mask(data: bytes, card: DatasetCard) -> list[str]:
    if not data.startswith(b"\x89PNG"):  # the header's check has said so
        return []
    try:
        values = np.unique(pixels(data))
    except ValueError as error:
        return [f"mask: {error}"]
    wrong = [int(v) for v in values if v >= len(card.mask_classes) and v != card.ignore_index]
    named = f"dataset.json names 0 to {len(card.mask_classes) - 1} (and {card.ignore_index} for unknown)"
    return [f"mask: class {', '.join(map(str, wrong))}; {named}"] if wrong else []


def _boxes(data: bytes, header: Header, card: DatasetCard) -> list[str]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        return [f"json: not readable ({' '.join(str(error).split())})"]
    if not isinstance(values, dict):
        return [f"json: a {type(values).__name__}; it has to be an object with boxes, width and height"]
    problems = []
    for side, size in (("width", header.width), ("height", header.height)):
        if size > 0 and side in values and values[side] != size:
            problems.append(f"json: {side} {values[side]!r}, its image has {size}")
    boxes, labels = values.get("boxes", []), values.get("labels", [])
    if not isinstance(boxes, list) or not isinstance(labels, list):
        return [*problems, "json: boxes and labels have to be lists"]
    for number, box in enumerate(boxes):
        problems += [f"json: box {number} {json.dumps(box)[:80]}: {what}" for what in _box(box, header, card)]
    problems += [f"json: label {label!r}, dataset.json names {_named(card)}" for label in labels if not _is_class(label, card)]
    return problems


def _box(box: Any, header: Header, card: DatasetCard) -> Iterator[str]:
    """What is wrong with `[x0, y0, x1, y1, class]`, pixels of the image as displayed."""
    if not isinstance(box, list) or len(box) != 5 or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in box):
        yield "a box is [x0, y0, x1, y1, class], five numbers"
        return
    if not all(-math.inf < v < math.inf for v in box):
        yield "not finite"
        return
    x0, y0, x1, y1, kind = box
    if x0 >= x1 or y0 >= y1:
        yield "empty or reversed; x0 < x1 and y0 < y1"
    elif header.width > 0 and not (0 <= x0 and 0 <= y0 and x1 <= header.width and y1 <= header.height):
        yield f"outside its image of {header.width}x{header.height}"
    if not _is_class(kind, card):
        yield f"class {kind!r}, dataset.json names {_named(card)}"


def _is_class(value: Any, card: DatasetCard) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(card.classes)


def _named(card: DatasetCard) -> str:
    return f"0 to {len(card.classes) - 1}" if card.classes else "no classes"


def _sound(suffix: str, data: bytes) -> list[str]:
    if suffix == "flac":
        whole = data[:4] == b"fLaC" and len(data) >= 42 and data[4] & 0x7F == 0  # STREAMINFO comes first (RFC 9639, 8.2)
        return [] if whole else ["sound: not a FLAC file"]
    try:
        with wave.open(io.BytesIO(data)) as sound:
            frames, size = sound.getnframes(), sound.getnchannels() * sound.getsampwidth()
            found = len(sound.readframes(frames)) // size
    except Exception as error:  # noqa: BLE001 - wave raises whatever damaged bytes lead it to
        return [f"sound: not a readable WAV of PCM samples ({' '.join(str(error).split()) or type(error).__name__})"]
    if not frames:
        return ["sound: has no samples in it"]
    return [f"sound: cut short, {found:,} of {frames:,} frames"] if found < frames else []
