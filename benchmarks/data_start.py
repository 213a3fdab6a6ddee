"""How long a training waits for its first batch, and what memory the index takes, by the number of samples. Shards are made here."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numbered_dataset
import typer
from common import machine, report

from mtgen.data.index_build import build_index, dataset_index_path

PROBE = """
import json, sys, time, psutil
from mtgen.data.loader import Loader
from mtgen.data.index import open_index
from mtgen.data.transform_spec import View
begin = time.monotonic()
loader = Loader(open_index(sys.argv[1], "train"), View(8, "rgb"), batch_size=64, rank=0, world=1)
next(loader)
first = time.monotonic() - begin
for _ in range(50):
    next(loader)
print(json.dumps({"first_batch_seconds": first, "memory_mb": psutil.Process().memory_info().rss / 1e6}))
loader.close()
"""


def main(
    quick: Annotated[bool, typer.Option("--quick", help="100,000 samples instead of 1,000,000")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the numbers to this file")] = None,
) -> None:
    """Measure first batch and memory with 1,000 samples and with many."""
    here, rows = machine(), []
    with tempfile.TemporaryDirectory(prefix="mtgen-data-start-") as temporary:
        for samples in (1_000, 100_000 if quick else 1_000_000):
            folder = Path(temporary) / str(samples)
            numbered_dataset.write(folder, samples, 10_000, numbered_dataset.plain)
            begin = time.monotonic()
            build_index(folder, out=dataset_index_path(folder))
            indexing = time.monotonic() - begin
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
            ended = subprocess.run(
                [sys.executable, "-c", PROBE, str(folder)],
                capture_output=True,
                text=True,
                env=environment,
                check=True,
                timeout=600,
            )
            found = json.loads(ended.stdout.splitlines()[-1])
            more = found["memory_mb"] - rows[0]["memory_mb"] if rows else 0.0
            row = {
                "name": f"{samples:,} samples",
                **found,
                "memory_over_1000_mb": more,
                "indexed_per_second": samples / indexing,
            }
            rows.append({**row, "index_file_mb": dataset_index_path(folder).stat().st_size / 1e6})
    report("First batch and memory, by the size of the data set", here, rows, json_file)


if __name__ == "__main__":
    typer.run(main)
