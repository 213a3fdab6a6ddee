"""The rows of an index: one a sample, in columns, and what only shows when a split is seen whole."""

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
"""What is stored of a sample: each has an offset (-1 where missing), a size and a CRC-32."""

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
"""A closer look at a sample; returns what is wrong with it."""


def rows(
    path: Path, split: str, number: int, card: DatasetCard, check: Check | None = None, name: str | None = None
) -> tuple[pa.Table, list[Problem]]:
    """The rows of shard `number` of the data set, and what is wrong with it; `name` is the shard's in problems (default: the file's)."""
    shard = name or path.name
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    problems: list[Problem] = []
    for item in samples(path, shard):
        if isinstance(item, Problem):
            problems.append(item)
            continue
        if "boxes" in item.parts and not is_annotation(item.parts["boxes"].data):
            item.parts["about"] = item.parts.pop("boxes")  # no boxes are known, which is not the same as none
        found, wrong = header(item, shard, card)
        problems += wrong
        if check is not None:
            problems += [
                Problem(shard, item.key, what)
                for what in check(item, found, card)
                if what not in {w.what for w in wrong}
            ]
        row = {"split": split, "key": item.key, "shard": number, **vars(found)}
        for name in STORED_PARTS:
            part = item.parts.get(name)
            place = (part.offset, len(part.data), part.crc) if part else (-1, 0, 0)
            row |= zip((f"{name}_offset", f"{name}_size", f"{name}_crc"), place, strict=True)
        for name, column in columns.items():
            column.append(row[name])
    return pa.table(columns, schema=SCHEMA), problems


def joined(tables: list[pa.Table]) -> pa.Table:
    """All shards' rows as one table."""
    return pa.concat_tables(tables).unify_dictionaries()


def split_problems(
    table: pa.Table, card: DatasetCard, shards: list[tuple[str, str]], problems: list[Problem]
) -> list[Problem]:
    """Keys that come twice, empty splits, and numbers of samples other than the card's.

    Args:
        shards: split and file name of each shard, in the order of their numbers.
        problems: those of the shards; where a shard could not be read to its end, its split is not counted.
    """
    unread = {problem.file for problem in problems if not problem.key}
    found = []
    for split, claimed in card.splits.items():
        part = table.filter(pc.equal(table["split"].cast(pa.string()), split))
        counts = pc.value_counts(part["key"])
        twice = part.filter(pc.is_in(part["key"], counts.filter(pc.greater(counts.field("counts"), 1)).field("values")))
        where: dict[str, list[str]] = defaultdict(list)
        for key, shard in zip(twice["key"].to_pylist(), twice["shard"].to_pylist(), strict=True):
            where[key].append(shards[shard][1])
        for key, files in where.items():
            found.append(
                Problem(
                    files[0],
                    key,
                    f"{len(files)} samples of split {split!r} have this key, the next in {files[1]}; keys are unique",
                )
            )
        if unread & {name for of, name in shards if of == split}:
            continue
        if part.num_rows != claimed.samples:
            what = f"splits.{split}.samples={claimed.samples:,}, its shards hold {part.num_rows:,} samples; correct the one or the other"
            found.append(Problem(CARD_FILE, "", what))
        elif not part.num_rows:
            found.append(
                Problem(CARD_FILE, "", f"splits.{split}: its shards hold no samples; write some or take the split out")
            )
    return found
