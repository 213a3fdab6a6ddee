"""The rows of an index, one per sample, and the problems that only a whole split shows."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mtgen.data.dataset_card import CARD_FILE
from mtgen.data.shard_scan import Header, Problem, StoredSample, header, is_annotation, samples
from mtgen.schema import COMPONENTS, DatasetCard

STORED_PARTS = ("image", *COMPONENTS)
"""What a sample may store: each part has an offset in the shard (-1 where missing), a size and a CRC-32."""

SCHEMA = pa.schema(
    [("split", pa.dictionary(pa.int32(), pa.string())), ("key", pa.string()), ("shard", pa.int32())]
    + [
        ("format", pa.dictionary(pa.int32(), pa.string())),
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
    path: Path, split: str, number: int, card: DatasetCard, check: Check | None = None, name: str | None = None
) -> tuple[pa.Table, list[Problem]]:
    """Read shard `number` of the data set: its rows, and what is wrong with it.

    Args:
        check: an additional check of every sample.
        name: name of the shard in problems; default: the name of the file.
    """
    shard = name or path.name
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    problems: list[Problem] = []
    for item in samples(path, shard):
        if isinstance(item, Problem):
            problems.append(item)
            continue
        if "boxes" in item.parts and not is_annotation(item.parts["boxes"].data):
            item.parts["other_json"] = item.parts.pop("boxes")  # the boxes are unknown, which is not "there are none"
        found, header_problems = header(item, shard, card)
        problems += header_problems
        if check is not None:
            known = {problem.what for problem in header_problems}
            problems += [Problem(shard, item.key, what) for what in check(item, found, card) if what not in known]
        row = {"split": split, "key": item.key, "shard": number, **vars(found)}
        for name in STORED_PARTS:
            part = item.parts.get(name)
            location = (part.offset, len(part.data), part.crc) if part else (-1, 0, 0)
            row |= zip((f"{name}_offset", f"{name}_size", f"{name}_crc"), location, strict=True)
        for name, column in columns.items():
            column.append(row[name])
    return pa.table(columns, schema=SCHEMA), problems


def joined(tables: list[pa.Table]) -> pa.Table:
    """Concatenate the rows of all shards."""
    return pa.concat_tables(tables).unify_dictionaries()


def split_problems(
    table: pa.Table, card: DatasetCard, shards: list[tuple[str, str]], problems: list[Problem]
) -> list[Problem]:
    """Duplicate keys, empty splits, and splits whose number of samples differs from the card.

    Args:
        shards: split and file name of each shard, in the order of their numbers.
        problems: the shards' problems; the samples of a split are not counted if one of its shards is unreadable.
    """
    unread = {problem.file for problem in problems if not problem.key}
    found = []
    for split, claimed in card.splits.items():
        part = table.filter(pc.equal(table["split"].cast(pa.string()), split))
        counts = pc.value_counts(part["key"])
        repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        duplicates = part.filter(pc.is_in(part["key"], repeated))
        files_by_key: dict[str, list[str]] = defaultdict(list)
        for key, shard in zip(duplicates["key"].to_pylist(), duplicates["shard"].to_pylist(), strict=True):
            files_by_key[key].append(shards[shard][1])
        for key, files in files_by_key.items():
            what = f"{len(files)} samples of split {split!r} have this key, the second is in {files[1]}; rename one"
            found.append(Problem(files[0], key, what))
        if unread & {name for shard_split, name in shards if shard_split == split}:
            continue
        if part.num_rows != claimed.samples:
            what = f"splits.{split}.samples={claimed.samples:,}, but its shards have {part.num_rows:,} samples"
            found.append(Problem(CARD_FILE, "", f"{what}; correct the number or the list of shards"))
        elif not part.num_rows:
            what = f"splits.{split}: its shards have no samples; add samples or remove the split"
            found.append(Problem(CARD_FILE, "", what))
    return found
