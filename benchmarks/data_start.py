"""Time to the first batch and memory of the index, by the number of samples; the shards are generated here."""

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
from common import JsonOption, machine, quick_option, report

from mtgen.data.index_store import dataset_index_path, index_dataset

PROBE = """
import json, sys, time, psutil
from mtgen.data.loader import Loader
from mtgen.data.index import open_index
from mtgen.data.transform_spec import TransformSpec
begin = time.monotonic()
loader = Loader(open_index(sys.argv[1], "train"), TransformSpec(8, "rgb"), batch_size=64, rank=0, world=1)
next(loader)
first = time.monotonic() - begin
for _ in range(50):
    next(loader)
print(json.dumps({"first_batch_seconds": first, "memory_mb": psutil.Process().memory_info().rss / 1e6}))
loader.close()
"""
"""Program of one measurement, which runs in its own process."""


def main(
    quick: Annotated[bool, quick_option("100,000 samples instead of 1,000,000")] = False, json_file: JsonOption = None
) -> None:
    """Measure the time to the first batch and the memory, with 1,000 and with 1,000,000 samples."""
    here, rows = machine(), []
    with tempfile.TemporaryDirectory(prefix="mtgen-data-start-") as temporary:
        for samples in (1_000, 100_000 if quick else 1_000_000):
            folder = Path(temporary) / str(samples)
            numbered_dataset.write(folder, samples, 10_000, numbered_dataset.image_and_class)
            begin = time.monotonic()
            index_dataset(folder)
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
            size = sum(path.stat().st_size for path in dataset_index_path(folder).iterdir())
            rows.append({**row, "index_file_mb": size / 1e6})
    report("Time to the first batch and memory, by the size of the data set", here, rows, json_file)


if __name__ == "__main__":
    typer.run(main)
