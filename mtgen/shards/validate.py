"""Validating a data set: decode every component and list every problem."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mtgen.data.boxes import annotation_problems
from mtgen.data.dataset_card import read_card, shard_names
from mtgen.data.image_io import pixels
from mtgen.data.index_build import IndexProgress
from mtgen.data.index_table import rows, split_problems
from mtgen.data.shard_scan import Header, Problem, StoredSample
from mtgen.schema import COMPONENTS, DatasetCard


@dataclass(frozen=True)
class SplitCounts:
    """The content of a split.

    Attributes:
        samples: number of readable samples.
        components: "class", "mask", ... -> number of samples that have it.
        classes: class name -> number of samples of the class.
    """

    samples: int
    components: dict[str, int]
    classes: dict[str, int]


@dataclass(frozen=True)
class ValidationReport:
    """Everything that is wrong with a data set, and the content of its splits.

    Attributes:
        sounds_judged: whether sounds were checked, which needs DALI.
    """

    folder: Path
    problems: list[Problem]
    splits: dict[str, SplitCounts]
    sounds_judged: bool = True

    def text(self) -> str:
        """The report in lines: problems, then the content of each split."""
        lines = [str(problem) for problem in self.problems]
        for name, count in self.splits.items():
            components = [f"{number:,} with {component}" for component, number in count.components.items() if number]
            lines.append(", ".join([f"{name}: {count.samples:,} samples", *components]))
        if not self.sounds_judged:
            lines.append(
                "sounds were not checked: DALI is not installed; run `make setup`, "
                "or pip install -e '.[cuda12]' (or cuda13)"
            )
        problems = len(self.problems)
        return "\n".join([*lines, f"{problems:,} problem{'s' * (problems > 1)}" if problems else "no problems"])

    def to_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        return {
            "folder": str(self.folder),
            "problems": [asdict(problem) for problem in self.problems],
            "splits": {name: asdict(count) for name, count in self.splits.items()},
            "sounds_judged": self.sounds_judged,
        }


def validate(folder: str | Path, progress: IndexProgress | None = None) -> ValidationReport:
    """Decode every component of every sample, with one thread per available CPU.

    Args:
        progress: called with (samples done, samples in total).

    Raises:
        DataError: `dataset.json` does not exist or is invalid.
    """
    folder = Path(folder)
    card = read_card(folder)
    shards = [(split, name) for split in card.splits for name in shard_names(folder, card, split)]
    has_dali = _sound_reader() is not None  # imported here once, not by all threads at the same time
    done, total = 0, sum(split.samples for split in card.splits.values())
    problems: list[Problem] = []
    tables: list[pa.Table] = []
    with ThreadPoolExecutor(min(len(shards), len(os.sched_getaffinity(0)))) as pool:
        work = [pool.submit(rows, folder / name, card, inspect, name) for _, name in shards]
        for shard in work:
            table, found = shard.result()
            tables.append(table)
            problems += found
            done += table.num_rows
            if progress is not None:
                progress(done, total)
    for found in split_problems(card, shards, tables.__getitem__, problems).values():
        problems += found
    counts = {
        split: _count(pa.concat_tables(t for t, (own, _) in zip(tables, shards, strict=True) if own == split), card)
        for split in card.splits
    }
    has_sounds = any(count.components["sound"] for count in counts.values())
    return ValidationReport(folder, problems, counts, has_dali or not has_sounds)


def _count(part: pa.Table, card: DatasetCard) -> SplitCounts:
    label = part["label"].to_numpy()
    return SplitCounts(
        samples=part.num_rows,
        components={name: int((part[f"{name}_offset"].to_numpy() >= 0).sum()) for name in COMPONENTS},
        classes={name: int((label == number).sum()) for number, name in enumerate(card.classes)},
    )


def inspect(sample: StoredSample, header: Header, card: DatasetCard) -> list[str]:
    """Problems of a sample that its headers do not show."""
    problems: list[str] = []
    if "image" in sample.parts and header.width > 0:
        problems += _image_problems(sample.parts["image"].data)
    if "mask" in sample.parts and card.mask_classes:
        problems += _mask_problems(sample.parts["mask"].data, card)
    if "tags" in sample.parts:  # wherever there are boxes too
        found = annotation_problems(sample.parts["tags"].data, header.width, header.height, len(card.classes))
        problems += [f"json: {problem}" for problem in found]
    if "caption" in sample.parts:
        try:
            sample.parts["caption"].data.decode("utf-8")
        except UnicodeDecodeError as error:
            problems.append(f"caption: not UTF-8 at byte {error.start}; write captions in UTF-8")
    if "sound" in sample.parts:
        problems += _sound_problems(sample.parts["sound"].data)
    return problems


def _image_problems(data: bytes) -> list[str]:
    try:
        pixels(data)
    except ValueError as error:
        return [f"image: {error}"]
    return []


def _mask_problems(data: bytes, card: DatasetCard) -> list[str]:
    if not data.startswith(b"\x89PNG"):  # the check of the header has reported this
        return []
    try:
        values = np.unique(pixels(data))
    except ValueError as error:
        return [f"mask: {error}"]
    invalid = [int(v) for v in values if v >= len(card.mask_classes) and v != card.ignore_index]
    named = f"dataset.json names 0 to {len(card.mask_classes) - 1} (and {card.ignore_index} for unknown)"
    return [f"mask: class {', '.join(map(str, invalid))}; {named}"] if invalid else []


@cache
def _sound_reader() -> Any:
    """The class that reads sounds in training; `None` without DALI."""
    try:
        from mtgen.data.audio import SoundReader
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("nvidia"):
            raise
        return None
    return SoundReader


def _sound_problems(data: bytes) -> list[str]:
    """What training would find wrong with a sound; each thread has its own pipeline."""
    reader = _sound_reader()
    if reader is None:
        return []
    if not hasattr(_thread_local, "sounds"):
        _thread_local.sounds = reader(threads=1, batch=1)
    problem = _thread_local.sounds.problem(data)
    return [f"sound: {problem}"] if problem else []


_thread_local = threading.local()
