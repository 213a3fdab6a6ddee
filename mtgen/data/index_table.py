"""The rows of an index, one per sample, and the problems that only a whole split shows."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mtgen.data.dataset_card import CARD_FILE
from mtgen.data.key_hashes import DuplicateFinder, key_hashes
from mtgen.data.shard_scan import Header, Problem, StoredSample, components_of_json, header, samples
from mtgen.schema import COMPONENTS, DatasetCard

STORED_PARTS = ("image", *COMPONENTS)
"""What a sample may store: each part has an offset in the shard (-1 where missing), a size and a CRC-32."""

FORMATS = ("", "jpeg", "png", "webp")
"""Formats of images, by the number that an index stores."""

SCHEMA = pa.schema(
    [("key", pa.large_string()), ("key_hash", pa.uint64())]
    + [
        ("format", pa.uint8()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("label", pa.int64()),
    ]
    + [
        (f"{p}_{column}", kind)
        for p in STORED_PARTS
        for column, kind in (("offset", pa.int64()), ("size", pa.int32()), ("crc", pa.uint32()))
    ]
)

Check = Callable[[StoredSample, Header, DatasetCard], list[str]]
"""An additional check of a sample; returns what is wrong with it."""


def rows(
    path: Path, card: DatasetCard, check: Check | None = None, name: str | None = None
) -> tuple[pa.Table, list[Problem]]:
    """Read a shard: its rows, and what is wrong with it.

    Args:
        check: an additional check of every sample.
        name: name of the shard in problems; default: the name of the file.
    """
    shard = name or path.name
    columns: dict[str, Any] = {name: [] for name in SCHEMA.names}
    problems: list[Problem] = []
    for item in samples(path, shard):
        if isinstance(item, Problem):
            problems.append(item)
            continue
        if (annotation := item.parts.pop("boxes", None)) is not None:
            names = components_of_json(annotation.data)
            item.parts |= dict.fromkeys(names or ["other_json"], annotation)
        found, header_problems = header(item, shard, card)
        problems += header_problems
        if check is not None:
            known = {problem.what for problem in header_problems}
            problems += [Problem(shard, item.key, what) for what in check(item, found, card) if what not in known]
        row = {"key": item.key, **vars(found), "format": FORMATS.index(found.format)}
        for name in STORED_PARTS:
            part = item.parts.get(name)
            location = (part.offset, len(part.data), part.crc) if part else (-1, 0, 0)
            row |= zip((f"{name}_offset", f"{name}_size", f"{name}_crc"), location, strict=True)
        for name, column in columns.items():
            if name != "key_hash":
                column.append(row[name])
    columns["key_hash"] = key_hashes(columns["key"])
    return pa.table(columns, schema=SCHEMA), problems


def split_problems(
    card: DatasetCard,
    shards: Sequence[tuple[str, str]],
    table: Callable[[int], pa.Table],
    problems: Sequence[Problem],
) -> dict[str, list[Problem]]:
    """Duplicate keys, empty splits, and splits whose number of samples differs from the card, by split.

    Args:
        shards: split and file name of each shard, in the order of their numbers.
        table: number of a shard -> its rows, at least "key" and "key_hash"; called up to twice for each shard.
        problems: the shards' problems; the samples of a split are not counted if one of its shards is unreadable.
    """
    unread = {problem.file for problem in problems if not problem.key}
    found: dict[str, list[Problem]] = {}
    for split, claimed in card.splits.items():
        numbers = [number for number, (own, _) in enumerate(shards) if own == split]
        count, duplicates = _duplicates(numbers, table)
        found[split] = [
            Problem(
                shards[first][1],
                key,
                f"{1 + len(others)} samples of split {split!r} have this key, the second is in "
                f"{shards[others[0]][1]}; rename one",
            )
            for key, (first, *others) in duplicates.items()
        ]
        if unread & {shards[number][1] for number in numbers}:
            continue
        if count != claimed.samples:
            what = f"splits.{split}.samples={claimed.samples:,}, but its shards have {count:,} samples"
            found[split].append(Problem(CARD_FILE, "", f"{what}; correct the number or the list of shards"))
        elif not count:
            what = f"splits.{split}: its shards have no samples; add samples or remove the split"
            found[split].append(Problem(CARD_FILE, "", what))
    return found


def _duplicates(numbers: Sequence[int], table: Callable[[int], pa.Table]) -> tuple[int, dict[str, list[int]]]:
    """The number of samples in some shards, and the keys that several of them have, with the shards of these."""
    count = 0
    with DuplicateFinder() as finder:
        for number in numbers:
            hashes = table(number)["key_hash"].to_numpy()
            finder.add(hashes)
            count += len(hashes)
        repeated = np.unique(finder.duplicates()[0])
    shards_by_key: dict[str, list[int]] = defaultdict(list)
    if len(repeated):
        for number in numbers:
            rows = table(number)
            for key in rows.filter(pa.array(np.isin(rows["key_hash"].to_numpy(), repeated)))["key"].to_pylist():
                shards_by_key[key].append(number)
    return count, {key: shards for key, shards in shards_by_key.items() if len(shards) > 1}
