"""`dataset.json` for shards that somebody else made, from what is in them."""

import os
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np

from mtgen.data.boxes import annotation
from mtgen.data.dataset_card import CARD_FILE
from mtgen.data.image_io import pixels
from mtgen.data.index_build import IndexProgress
from mtgen.data.index_table import rows
from mtgen.data.shard_scan import COMPONENT_BY_SUFFIX, Header, Problem, StoredSample
from mtgen.errors import DataError, summarize_lines
from mtgen.schema import COMPONENTS, IGNORE_INDEX, DatasetCard, Split
from mtgen.shards.input_files import read_names, write_whole
from mtgen.shards.write import card_text
from mtgen.utils.shell import shell_command

SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Split -> the words in a shard's name that mean it; a name without any is of the split "train"."""

MAX_CLASS_NUMBER = 1 << 16
"""Class numbers from here on are taken for something else: a number in a catalogue, a time."""

MAX_PROBLEMS_LISTED = 5
"""Problems that are listed; the rest is counted."""

_ANY = DatasetCard(
    name="", classes=[""] * MAX_CLASS_NUMBER, mask_classes=[""] * 256, splits={}
)  # judges structure: every number has a name


@dataclass(frozen=True)
class Description:
    """What was found in a folder of shards, and the card that was written.

    Attributes:
        path: the `dataset.json`.
        found: what is in the shards, a line each.
        edit: what only a person can know, a line each.
        problems: what cannot be used.
    """

    path: Path
    card: DatasetCard
    found: list[str]
    edit: list[str]
    problems: list[Problem]

    def text(self) -> str:
        """What was found and what to edit, in lines."""
        lines = [*self.found, f"wrote {self.path}; edit in it:", *(f"  {line}" for line in self.edit)]
        if self.problems:
            lines += [
                f"{len(self.problems):,} problems:",
                *(f"  {line}" for line in summarize_lines(list(map(str, self.problems)), MAX_PROBLEMS_LISTED)),
            ]
        return "\n".join([*lines, f"Next: {shell_command('mtgen shards validate', self.path.parent)}"])


@dataclass
class _Shard:
    """What one shard holds.

    Attributes:
        components: "class", "mask", ... -> how many samples carry it.
        classes: largest class number of a sample -> the first such sample.
        masks: the mask values.
        about: how many samples have a JSON that knows of no boxes.
        others: suffixes of members that are left alone.
    """

    samples: int
    components: Counter[str]
    problems: list[Problem]
    classes: dict[int, str]
    masks: set[int]
    about: int
    others: set[str]


def describe(
    folder: str | Path,
    classes: str | Path | None = None,
    overwrite: bool = False,
    progress: IndexProgress | None = None,
) -> Description:
    """Read every shard in `folder` and write `dataset.json` beside them; threads take a shard each.

    Args:
        folder: with tars in it, or in folders in it.
        classes: a text file, a class name in each line; default: "class 0", "class 1", ..., up to the largest that is there.
        overwrite: replace the `dataset.json` that is there.
        progress: called with (shards done, shards in all).

    Raises:
        DataError: no folder or no shards; a `dataset.json` is there; no sample in any shard; fewer names than classes.
    """
    folder = Path(folder)
    path = folder / CARD_FILE
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; give the one that holds the tar files")
    if path.exists() and not overwrite:
        raise DataError(f"{path}: is there already; ask to overwrite it, or edit it")
    names = None if classes is None else read_names(Path(classes))
    files = _shards(folder)
    shards: list[_Shard] = []
    with ThreadPoolExecutor(min(len(files), len(os.sched_getaffinity(0)))) as pool:
        for shard in pool.map(lambda file: _read(folder / file), files):
            shards.append(shard)
            if progress is not None:
                progress(len(shards), len(files))
    problems = [problem for shard in shards for problem in shard.problems]
    if not any(shard.samples for shard in shards):
        said = "\n".join(f"{folder}/{problem}" for problem in problems[:MAX_PROBLEMS_LISTED])
        raise DataError(
            f"{folder}: no sample in its {len(files)} tar files, so there is nothing to describe\n{said}".rstrip()
        )
    splits: dict[str, list[int]] = {}
    for split in SPLIT_WORDS:
        mine = [number for number, file in enumerate(files) if split_of(file) == split]
        if any(shards[number].samples for number in mine):
            splits[split] = mine
    card = DatasetCard(
        name=folder.resolve().name,
        classes=_classes(shards, names, classes),
        mask_classes=[
            f"mask {value}" for value in range(max((v for shard in shards for v in shard.masks), default=-1) + 1)
        ],
        splits={
            split: Split(samples=sum(shards[n].samples for n in mine), shards=patterns([files[n] for n in mine]))
            for split, mine in splits.items()
        },
    )
    found = [_holds(split, [shards[n] for n in mine]) for split, mine in splits.items()] + _remarks(shards)
    write_whole(path, card_text(card))
    return Description(path, card, found, _edits(card, names is not None), problems)


def split_of(file: str) -> str:
    """The split that a shard's name speaks of, the name before its folders: "a-val-0001.tar" and "validation/0001.tar" are "val"."""
    for part in reversed(PurePosixPath(file).parts):
        for word in re.findall("[a-z]+", part.lower()):
            for split, words in SPLIT_WORDS.items():
                if word in words:
                    return split
    return "train"


def patterns(files: Sequence[str]) -> str | list[str]:
    """File names as `dataset.json` gives them: consecutive numbers of one width as `name-{000..123}.tar`; one pattern, or a list."""
    runs: list[list[str]] = [[files[0]]]
    for before, file in pairwise(files):
        if _next(before) == file:
            runs[-1].append(file)
        else:
            runs.append([file])
    short = [run[0] if len(run) == 1 else _braces(run[0], run[-1]) for run in runs]
    return short[0] if len(short) == 1 else short


_NUMBER = re.compile(r"(.*?)([0-9]+)([^0-9]*)", re.DOTALL)  # the last number in a name


def _next(file: str) -> str | None:
    """The name with the next number, of the same width."""
    if (match := _NUMBER.fullmatch(file)) is None:
        return None
    number = str(int(match[2]) + 1).zfill(len(match[2]))
    return match[1] + number + match[3] if len(number) == len(match[2]) else None


def _braces(first: str, last: str) -> str:
    start, end = _NUMBER.fullmatch(first), _NUMBER.fullmatch(last)
    assert start is not None and end is not None
    return f"{start[1]}{{{start[2]}..{end[2]}}}{start[3]}"


def _shards(folder: Path) -> list[str]:
    """Tars in the folder and in folders in it, relative to it, in the order of the numbers in their names."""
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*.tar") if path.is_file()]
    files = [file for file in files if not any(part.startswith(".") for part in PurePosixPath(file).parts)]
    if not files:
        packed = next(iter(sorted(folder.rglob("*.tar.*")) + sorted(folder.rglob("*.tgz"))), None)
        remedy = (
            f"{packed.name} is compressed: unpack it (gunzip) first"
            if packed
            else "give the folder that holds the shards"
        )
        raise DataError(f"{folder}: no .tar files in it; {remedy}")
    if strange := [file for file in files if set(file) & set("{}\\")]:
        raise DataError(
            f"{folder / strange[0]}: braces stand for number ranges in {CARD_FILE}; rename this file without them"
        )
    return sorted(
        files,
        key=lambda file: [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split("([0-9]+)", file)],
    )


def _read(path: Path) -> _Shard:
    masks: set[int] = set()
    classes: dict[int, str] = {}
    about = 0

    def look(sample: StoredSample, header: Header, _: DatasetCard) -> list[str]:
        nonlocal about
        about += "about" in sample.parts
        numbers, problems = [header.label], []
        if "boxes" in sample.parts:
            try:
                stored = annotation(
                    sample.parts["boxes"].data, header.width, header.height, np.arange(MAX_CLASS_NUMBER)
                )
                numbers += [*stored.boxes[:, 4].astype(int).tolist(), *stored.labels]
            except ValueError as error:
                problems.append(f"json: {error}")
        if "mask" in sample.parts and sample.parts["mask"].data.startswith(b"\x89PNG"):
            try:
                values = pixels(sample.parts["mask"].data)
                masks.update(np.unique(values).tolist() if values.ndim == 2 and values.dtype == np.uint8 else [])
            except ValueError as error:
                problems.append(f"mask: {error}")
        classes.setdefault(max(numbers), f"{path.name}: {sample.key}")
        return problems

    table, problems = rows(path, "", 0, _ANY, look)
    components = Counter({name: int((table[f"{name}_offset"].to_numpy() >= 0).sum()) for name in COMPONENTS})
    return _Shard(table.num_rows, components, problems, classes, masks - {IGNORE_INDEX}, about, _others(path))


def _others(path: Path) -> set[str]:
    """Suffixes that mean nothing here, of the files of the first sample."""
    try:
        with tarfile.open(path) as tar:
            names = [
                PurePosixPath(member.name).name for _, member in zip(range(20), tar, strict=False) if member.isfile()
            ]
    except (tarfile.TarError, ValueError, OverflowError):  # reading the samples has said so
        return set()
    found = (name.partition(".") for name in names)
    return {suffix.lower() for key, _, suffix in found if suffix and key == names[0].partition(".")[0]} - set(
        COMPONENT_BY_SUFFIX
    )


def _classes(shards: list[_Shard], names: list[str] | None, source: str | Path | None) -> list[str]:
    largest, where = max(
        (item for shard in shards for item in shard.classes.items()), key=lambda item: item[0], default=(-1, "")
    )
    if names is None:
        return [f"class {number}" for number in range(largest + 1)]
    if largest >= len(names):
        raise DataError(
            f"{source}: names {len(names)} classes (0 to {len(names) - 1}), and {where} has class {largest}; add the others"
        )
    return names


def _holds(split: str, shards: list[_Shard]) -> str:
    count = sum((shard.components for shard in shards), Counter[str]())
    carried = [f"{count[name]:,} with {name}" for name in COMPONENTS if count[name]]
    return ", ".join(
        [
            f"{split}: {sum(shard.samples for shard in shards):,} samples in {len(shards):,} shard{'s' * (len(shards) > 1)}",
            *carried,
        ]
    )


def _remarks(shards: list[_Shard]) -> list[str]:
    lines = []
    if about := sum(shard.about for shard in shards):
        lines.append(
            f"{about:,} .json without boxes or labels (img2dataset writes such): left alone, no boxes are known"
        )
    if others := sorted({suffix for shard in shards for suffix in shard.others}):
        lines.append(f"left alone, since the suffix means nothing here: {', '.join('.' + suffix for suffix in others)}")
    return lines


def _edits(card: DatasetCard, named: bool) -> list[str]:
    lines = ["source and licence: where the images come from, and what may be done with them"]
    if card.classes and not named:
        lines.append(
            f'classes: the names of "class 0" to "class {len(card.classes) - 1}"; or run again with --classes FILE --overwrite'
        )
    if card.mask_classes:
        lines.append(
            f'mask_classes: the names of "mask 0" to "mask {len(card.mask_classes) - 1}"; one called "background" is drawn clear'
        )
    if len(card.splits) == 1:
        lines.append("splits: there is one; `mtgen shards split` deals samples to others")
    return lines
