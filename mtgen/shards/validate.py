"""Looking at every byte of a data set: decode all of it, and list everything that is wrong."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtgen.data.boxes import annotation_problems
from mtgen.data.dataset_card import read_card, shard_names
from mtgen.data.image_io import pixels
from mtgen.data.index_build import IndexProgress
from mtgen.data.index_table import joined, rows, split_problems
from mtgen.data.shard_scan import Header, Problem, StoredSample
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
class ValidationReport:
    """Everything that is wrong in a data set, and how much of it there is, by split."""

    folder: Path
    problems: list[Problem]
    splits: dict[str, Count]
    sounds_judged: bool = True

    def text(self) -> str:
        """The report in lines: problems, then what each split holds."""
        lines = [str(problem) for problem in self.problems]
        for name, count in self.splits.items():
            carried = ", ".join(
                f"{number:,} with {component}" for component, number in count.components.items() if number
            )
            lines.append(f"{name}: {count.samples:,} samples" + (f", {carried}" if carried else ""))
        if not self.sounds_judged:
            lines.append(
                "sounds were not judged: DALI cannot be imported; `make setup`, or pip install -e '.[cuda12]' (or cuda13)"
            )
        return "\n".join([*lines, f"{len(self.problems):,} problems" if self.problems else "no problems"])

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return {
            "folder": str(self.folder),
            "problems": [asdict(problem) for problem in self.problems],
            "splits": {name: asdict(count) for name, count in self.splits.items()},
            "sounds_judged": self.sounds_judged,
        }


def validate(folder: str | Path, progress: IndexProgress | None = None) -> ValidationReport:
    """Decode every component of every sample; threads take a shard each, as many as this process has CPUs.

    Raises:
        DataError: there is no `dataset.json` to judge the shards by, or it is not valid.
    """
    folder = Path(folder)
    card = read_card(folder)
    shards = [(split, name) for split in card.splits for name in shard_names(folder, card, split)]
    sounds = _sound_reader() is not None  # imported here, once, not by all threads together
    done, total = 0, sum(split.samples for split in card.splits.values())
    problems: list[Problem] = []
    tables: list[pa.Table] = []
    with ThreadPoolExecutor(min(len(shards), len(os.sched_getaffinity(0)))) as pool:
        work = [
            pool.submit(rows, folder / name, split, number, card, inspect)
            for number, (split, name) in enumerate(shards)
        ]
        for shard in work:
            table, found = shard.result()
            tables.append(table)
            problems += found
            done += table.num_rows
            if progress is not None:
                progress(done, total)
    table = joined(tables)
    problems += split_problems(table, card, shards, problems)
    counts = {split: _count(table, split, card) for split in card.splits}
    return ValidationReport(
        folder, problems, counts, sounds or not any(count.components["sound"] for count in counts.values())
    )


def _count(table: pa.Table, split: str, card: DatasetCard) -> Count:
    part = table.filter(pc.equal(table["split"].cast(pa.string()), split))
    label = part["label"].to_numpy()
    return Count(
        samples=part.num_rows,
        components={name: int((part[f"{name}_offset"].to_numpy() >= 0).sum()) for name in COMPONENTS},
        classes={name: int((label == number).sum()) for number, name in enumerate(card.classes)},
    )


def inspect(sample: StoredSample, header: Header, card: DatasetCard) -> list[str]:
    """What is wrong with a sample that its headers do not show."""
    problems: list[str] = []
    if "image" in sample.parts and header.width > 0:
        problems += _undecodable("image", sample.parts["image"].data)
    if "mask" in sample.parts and card.mask_classes:
        problems += _mask(sample.parts["mask"].data, card)
    if "boxes" in sample.parts:
        found = annotation_problems(sample.parts["boxes"].data, header.width, header.height, len(card.classes))
        problems += [f"json: {fault}" for fault in found]
    if "caption" in sample.parts:
        try:
            sample.parts["caption"].data.decode("utf-8")
        except UnicodeDecodeError as error:
            problems.append(f"caption: not UTF-8 at byte {error.start}; write captions in UTF-8")
    if "sound" in sample.parts:
        problems += _sound(sample.parts["sound"].data)
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


@cache
def _sound_reader() -> Any:
    """What training reads sounds with; `None` where DALI is missing."""
    try:
        from mtgen.data.audio import SoundReader
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("nvidia"):
            raise
        return None
    return SoundReader


def _sound(data: bytes) -> list[str]:
    """As training judges it; each thread has a pipeline of its own."""
    reader = _sound_reader()
    if reader is None:
        return []
    if not hasattr(_own, "sounds"):
        _own.sounds = reader(threads=1, batch=1)
    reason = _own.sounds.problem(data)
    return [f"sound: {reason}"] if reason else []


_own = threading.local()
