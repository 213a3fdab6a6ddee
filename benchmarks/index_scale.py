"""Opening an index of many shards and samples: time, memory and file size; only the index is made here, no shards.

It is opened as training does, without the samples that are held out, and random rows are read. `own_memory_mb` is the
process's own memory; `mapped_mb` are pages of the index's files, which all processes of a node share.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer
from common import JsonOption, machine, quick_option, report

from mtgen.data.index_file import ShardRecord, content_digest, write_index
from mtgen.data.index_table import SCHEMA

SAMPLES_PER_SHARD = 200

PROBE = """
import json, sys, time
from pathlib import Path
import numpy as np
from mtgen.data.index import Index
from mtgen.data.index_file import IndexFile
from mtgen.data.shard_files import Shards
from mtgen.data.validation import held_out_rows
from mtgen.schema import DatasetCard
from mtgen.storage.source import LocalFolder

def memory(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(kind))

folder, digest = Path(sys.argv[1]), sys.argv[2]
before = memory("RssAnon"), memory("RssFile")
begin, used = time.monotonic(), time.process_time()
file = IndexFile.open(folder, digest)
whole = Index(Shards(LocalFolder(folder)), "train", DatasetCard.model_validate(file.card), file)
index = whole.without(held_out_rows(whole.sizes))
opened = time.monotonic() - begin, time.process_time() - used
random = np.random.default_rng(0)
used = time.process_time()
for batch in random.integers(0, len(index), (100, 1024)):
    index.label[batch].sum(), index.present["class"][batch].sum()
    [index.shard(i) for i in batch[:16]]
batches = time.process_time() - used
used = time.process_time()
index.fingerprint
hashed = time.process_time() - used
print(json.dumps({
    "samples": len(whole),
    "open_seconds": opened[0],
    "open_cpu_seconds": opened[1],
    "cpu_ms_per_1024_rows": batches * 10,
    "fingerprint_cpu_seconds": hashed,
    "own_memory_mb": memory("RssAnon") - before[0],
    "mapped_mb": memory("RssFile") - before[1],
}))
"""
"""Program of one measurement, which runs in its own process."""


def rows(shard: int) -> pa.Table:
    """Rows of one shard, as if each sample were an image of 100 kB with a class."""
    number = np.arange(SAMPLES_PER_SHARD)
    columns = {
        "key": pa.array([f"{shard * SAMPLES_PER_SHARD + i:012d}" for i in number], pa.large_string()),
        "image_offset": number * 100_000,
        "image_size": np.full(SAMPLES_PER_SHARD, 99_000),
        "class_offset": number * 100_000 + 99_328,
        "class_size": np.full(SAMPLES_PER_SHARD, 3),
        "label": number % 1000,
    }
    for field in SCHEMA:
        if field.name not in columns:
            columns[field.name] = np.full(SAMPLES_PER_SHARD, -1 if field.name.endswith("_offset") else 0)
    return pa.table([pa.array(columns[field.name]).cast(field.type) for field in SCHEMA], schema=SCHEMA)


def main(
    quick: Annotated[bool, quick_option("10,000 shards instead of 500,000")] = False, json_file: JsonOption = None
) -> None:
    """Measure how an index of 1,000 and one of 500,000 shards (100 million samples) are written and opened."""
    here, found = machine(), []
    card = {"name": "many", "classes": [str(k) for k in range(1000)], "mask_classes": [], "ignore_index": 255}
    with tempfile.TemporaryDirectory(prefix="mtgen-index-scale-", dir=os.environ.get("MTGEN_CACHE")) as temporary:
        for count in (1_000, 10_000 if quick else 500_000):
            folder = Path(temporary) / str(count)
            first = rows(0)
            digest = content_digest(first)
            records = [
                ShardRecord(f"train-{n:06d}.tar", 20_000_000, f'"{n:032x}"', SAMPLES_PER_SHARD, digest, "0" * 64)
                for n in range(count)
            ]

            def tables(count: int = count, first: pa.Table = first) -> Iterator[pa.Table]:
                yield from (first for _ in range(count))

            split = {"samples": count * SAMPLES_PER_SHARD, "shards": f"train-{{000000..{count - 1:06d}}}.tar"}
            begin = time.process_time()
            written = write_index(folder, {**card, "splits": {"train": split}}, "s3", {"train": records}, tables(), {})
            seconds = time.process_time() - begin
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
            ended = subprocess.run(
                [sys.executable, "-c", PROBE, str(folder), written],
                capture_output=True,
                text=True,
                env=environment,
                check=True,
                timeout=600,
            )
            size = {path.name.partition("-")[0]: path.stat().st_size / 1e6 for path in folder.iterdir()}
            row = {
                "name": f"{count:,} shards",
                "write_cpu_seconds": seconds,
                **json.loads(ended.stdout.splitlines()[-1]),
            }
            found.append({**row, "shards_mb": size["shards"], "samples_mb": size["samples"]})
    report("Opening an index of many shards", here, found, json_file)


if __name__ == "__main__":
    typer.run(main)
