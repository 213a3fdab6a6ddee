"""Writing `dataset.json` for existing shards, from their content."""

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
from mtgen.shards.draft import card_text
from mtgen.shards.input_files import read_names, write_atomic
from mtgen.shards.input_names import SPLIT_WORDS
from mtgen.utils.shell import shell_command

MAX_CLASS_NUMBER = 1 << 16
"""Larger class numbers are taken for something else, such as a catalog number or a time."""

MAX_PROBLEMS_LISTED = 5
"""Problems that are listed; the others are counted."""

# names every class number, so that only the structure of the shards is checked
_ANY_CARD = DatasetCard(name="", classes=[""] * MAX_CLASS_NUMBER, mask_classes=[""] * 256, splits={})


@dataclass(frozen=True)
class Description:
    """The content of a folder of shards, and the card that was written.

    Attributes:
        path: the `dataset.json`.
        card: its content.
        found: what the shards contain, one line per fact.
        to_edit: what only a person can know, one line per key of the card.
        problems: samples and shards that cannot be used.
    """

    path: Path
    card: DatasetCard
    found: list[str]
    to_edit: list[str]
    problems: list[Problem]

    def text(self) -> str:
        """What was found and what to edit, in lines."""
        lines = [*self.found, f"wrote {self.path}; edit these keys:", *(f"  {line}" for line in self.to_edit)]
        if self.problems:
            listed = summarize_lines(list(map(str, self.problems)), MAX_PROBLEMS_LISTED)
            lines += [f"{len(self.problems):,} problems:", *(f"  {line}" for line in listed)]
        return "\n".join([*lines, f"Next: {shell_command('mtgen shards validate', self.path.parent)}"])


@dataclass
class _Shard:
    """The content of one shard.

    Attributes:
        samples: number of samples.
        components: "class", "mask", ... -> number of samples that have it.
        problems: what cannot be used.
        classes: largest class number of a sample -> the first such sample.
        masks: the mask values.
        other_json: number of samples whose JSON has neither boxes nor labels.
        others: suffixes of members that are ignored.
    """

    samples: int
    components: Counter[str]
    problems: list[Problem]
    classes: dict[int, str]
    masks: set[int]
    other_json: int
    others: set[str]


def describe(
    folder: str | Path,
    classes: str | Path | None = None,
    overwrite: bool = False,
    progress: IndexProgress | None = None,
) -> Description:
    """Read all shards in `folder`, in parallel, and write `dataset.json` beside them.

    Args:
        folder: a folder with tar files in it or in its subfolders.
        classes: a text file with one class name per line; default: "class 0", "class 1", ..., up to the largest number.
        overwrite: replace an existing `dataset.json`.
        progress: called with (shards done, shards in total).

    Raises:
        DataError: there is no folder, shard or sample; `dataset.json` exists; there are fewer names than classes.
    """
    folder = Path(folder)
    path = folder / CARD_FILE
    if not folder.is_dir():
        raise DataError(f"{folder}: the folder does not exist; give the one with the tar files")
    if path.exists() and not overwrite:
        raise DataError(f"{path}: exists already; edit it, or replace it with --overwrite")
    names = None if classes is None else read_names(Path(classes))
    files = _shard_files(folder)
    shards = _read_shards(folder, files, progress)
    splits: dict[str, dict[str, _Shard]] = {}
    for split in SPLIT_WORDS:
        members = {file: shard for file, shard in zip(files, shards, strict=True) if split_of(file) == split}
        if any(shard.samples for shard in members.values()):
            splits[split] = members
    largest_mask = max((value for shard in shards for value in shard.masks), default=-1)
    card = DatasetCard(
        name=folder.resolve().name,
        classes=_class_names(shards, names, classes),
        mask_classes=[f"mask {value}" for value in range(largest_mask + 1)],
        splits={
            split: Split(samples=sum(shard.samples for shard in members.values()), shards=patterns(list(members)))
            for split, members in splits.items()
        },
    )
    found = [_summary(split, list(members.values())) for split, members in splits.items()] + _ignored(shards)
    write_atomic(path, card_text(card))
    problems = [problem for shard in shards for problem in shard.problems]
    return Description(path, card, found, _to_edit(card, names is not None), problems)


def split_of(file: str) -> str:
    """The split of a shard by its name, then by its folders: "a-val-0001.tar" and "validation/0001.tar" are "val"."""
    for part in reversed(PurePosixPath(file).parts):
        for word in re.findall("[a-z]+", part.lower()):
            for split, words in SPLIT_WORDS.items():
                if word in words:
                    return split
    return "train"


def patterns(files: Sequence[str]) -> str | list[str]:
    """Abbreviate file names for `dataset.json`: consecutive numbers of the same width become `name-{000..123}.tar`.

    Returns one pattern, or a list of patterns.
    """
    runs: list[list[str]] = [[files[0]]]
    for previous, file in pairwise(files):
        if _next_name(previous) == file:
            runs[-1].append(file)
        else:
            runs.append([file])
    abbreviated = [run[0] if len(run) == 1 else _braces(run[0], run[-1]) for run in runs]
    return abbreviated[0] if len(abbreviated) == 1 else abbreviated


_NUMBER = re.compile(r"(.*?)([0-9]+)([^0-9]*)", re.DOTALL)  # the last number in a name


def _next_name(file: str) -> str | None:
    """The name with the next number of the same width."""
    if (match := _NUMBER.fullmatch(file)) is None:
        return None
    number = str(int(match[2]) + 1).zfill(len(match[2]))
    return match[1] + number + match[3] if len(number) == len(match[2]) else None


def _braces(first: str, last: str) -> str:
    start, end = _NUMBER.fullmatch(first), _NUMBER.fullmatch(last)
    assert start is not None and end is not None
    return f"{start[1]}{{{start[2]}..{end[2]}}}{start[3]}"


def _shard_files(folder: Path) -> list[str]:
    """Relative paths of the tar files in the folder and its subfolders, in the order of the numbers in their names."""
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*.tar") if path.is_file()]
    files = [file for file in files if not any(part.startswith(".") for part in PurePosixPath(file).parts)]
    if not files:
        compressed = next(iter(sorted(folder.rglob("*.tar.*")) + sorted(folder.rglob("*.tgz"))), None)
        remedy = f"{compressed.name} is compressed: gunzip it" if compressed else "give the folder with the shards"
        raise DataError(f"{folder}: has no .tar files; {remedy}")
    if invalid := [file for file in files if set(file) & set("{}\\")]:
        raise DataError(
            f"{folder / invalid[0]}: braces denote ranges of numbers in {CARD_FILE}; rename the file without them"
        )
    return sorted(
        files,
        key=lambda file: [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split("([0-9]+)", file)],
    )


def _read_shards(folder: Path, files: list[str], progress: IndexProgress | None) -> list[_Shard]:
    """Read all shards in parallel; `DataError` if none has a sample."""
    shards: list[_Shard] = []
    with ThreadPoolExecutor(min(len(files), len(os.sched_getaffinity(0)))) as pool:
        for shard in pool.map(lambda file: _read(folder / file), files):
            shards.append(shard)
            if progress is not None:
                progress(len(shards), len(files))
    if not any(shard.samples for shard in shards):
        problems = [f"{folder}/{problem}" for shard in shards for problem in shard.problems]
        first = f"{folder}: no samples in its {len(files)} tar files; give the folder of a WebDataset"
        others = sorted({suffix for shard in shards for suffix in shard.others})
        why = [f"{folder}: {_suffix_rule(others)}"] if others else []
        raise DataError("\n".join([first, *why, *problems[:MAX_PROBLEMS_LISTED]]))
    return shards


def _read(path: Path) -> _Shard:
    masks: set[int] = set()
    classes: dict[int, str] = {}
    other_json = 0

    def inspect(sample: StoredSample, header: Header, _: DatasetCard) -> list[str]:
        nonlocal other_json
        other_json += "other_json" in sample.parts
        numbers, problems = [header.label], []
        if "tags" in sample.parts:  # wherever there are boxes too
            data = sample.parts["tags"].data
            try:
                stored = annotation(data, header.width, header.height, np.arange(MAX_CLASS_NUMBER))
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

    table, problems = rows(path, _ANY_CARD, inspect)
    components = Counter({name: int((table[f"{name}_offset"].to_numpy() >= 0).sum()) for name in COMPONENTS})
    return _Shard(
        table.num_rows, components, problems, classes, masks - {IGNORE_INDEX}, other_json, _unknown_suffixes(path)
    )


def _unknown_suffixes(path: Path) -> set[str]:
    """Unknown suffixes among the files of the first sample."""
    try:
        with tarfile.open(path) as tar:
            names = [
                PurePosixPath(member.name).name for _, member in zip(range(20), tar, strict=False) if member.isfile()
            ]
    except (tarfile.TarError, ValueError, OverflowError):  # the scan of the samples has reported this
        return set()
    parts = [name.partition(".") for name in names]
    suffixes = {suffix.lower() for key, _, suffix in parts if suffix and key == parts[0][0]}
    return suffixes - set(COMPONENT_BY_SUFFIX)


def _class_names(shards: list[_Shard], names: list[str] | None, source: str | Path | None) -> list[str]:
    """The names of the classes, given or generated; `DataError` if fewer are given than the shards need."""
    largest, where = max(
        (item for shard in shards for item in shard.classes.items()), key=lambda item: item[0], default=(-1, "")
    )
    if names is None:
        return [f"class {number}" for number in range(largest + 1)]
    if largest >= len(names):
        raise DataError(
            f"{source}: names {len(names)} classes (0 to {len(names) - 1}), but {where} has class {largest}; "
            "add the missing names"
        )
    return names


def _summary(split: str, shards: list[_Shard]) -> str:
    count = sum((shard.components for shard in shards), Counter[str]())
    samples = sum(shard.samples for shard in shards)
    components = [f"{count[name]:,} with {name}" for name in COMPONENTS if count[name]]
    return ", ".join([f"{split}: {samples:,} samples in {len(shards):,} shard{'s' * (len(shards) > 1)}", *components])


def _ignored(shards: list[_Shard]) -> list[str]:
    lines = []
    if count := sum(shard.other_json for shard in shards):
        lines.append(f"ignored: {count:,} .json without boxes or labels, such as those of img2dataset")
    if others := sorted({suffix for shard in shards for suffix in shard.others}):
        dotted = any(suffix.rpartition(".")[2] in COMPONENT_BY_SUFFIX for suffix in others)
        lines.append(f"ignored: {_suffix_rule(others) if dotted else _listed(others)}")
    return lines


def _listed(suffixes: Sequence[str]) -> str:
    listed = summarize_lines([f".{suffix}" for suffix in suffixes], MAX_PROBLEMS_LISTED)
    return f"files with the suffixes {', '.join(listed)}"


def _suffix_rule(suffixes: Sequence[str]) -> str:
    """Why files with unknown suffixes belong to no sample."""
    return (
        f"{_listed(suffixes)}: the key of a sample ends at the first dot of a name, and the rest is the suffix, one of "
        f".{', .'.join(COMPONENT_BY_SUFFIX)}; rename the files, without other dots"
    )


def _to_edit(card: DatasetCard, named: bool) -> list[str]:
    lines = ["source, licence: where the images come from, and how they may be used"]
    if card.classes and not named:
        names = f'"class 0" to "class {len(card.classes) - 1}"'
        lines.append(f"classes: replace {names} by their names, or run again with --classes FILE --overwrite")
    if card.mask_classes:
        names = f'"mask 0" to "mask {len(card.mask_classes) - 1}"'
        lines.append(f'mask_classes: replace {names} by their names; one named "background" is shown transparent')
    if len(card.splits) == 1:
        lines.append("splits: there is only one; `mtgen shards split` makes others")
    return lines
