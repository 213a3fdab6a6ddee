"""Time per step and per row for what workers agree on and log, by their number: real gloo processes on loopback.

"Before" is what mtgen did up to November 2026: an all-reduce of flags before each step, and per row two gathers of
objects and an all-reduce. "After" is what it does now. The gradients' all-reduce, which both have, is left out.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.distributed as dist
import typer
from common import JsonOption, machine, quick_option, report

from mtgen.training.consensus import Consensus
from mtgen.training.interrupts import InterruptAgreement
from mtgen.training.running_means import RunningMeans

NAMES = 64
"""Losses of a row."""

FLAGS = 9
"""Flags that were reduced before each step: an error in the data, and a request of each of eight callbacks."""

CARRIED_TO = 1024


def _milliseconds(work: Callable[[], Any], repeats: int) -> float:
    """Median milliseconds of `work` on this worker's training thread, after a first call."""
    work()
    dist.barrier()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - begin))
    dist.barrier()
    return statistics.median(times)


def _row_before(means: RunningMeans) -> None:
    """Names of all workers, their sums, their damaged samples."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, list(means.sums))
    table = torch.stack([torch.stack([means.sums[name], torch.ones(())]) for name in means.sums])
    dist.all_reduce(table)
    dist.all_gather_object(everyone, [])


def _worker(rank: int, world: int, folder: str, repeats: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    consensus, means = Consensus(), RunningMeans(None)
    losses = {f"loss{n}": torch.tensor(float(n)) for n in range(NAMES)}

    def row_after() -> None:
        means.add("loss", losses)
        means.read((1.0, 2.0, 3.0))

    with InterruptAgreement(lambda: False, rank, world) as agreement:
        found = {
            "step_before_ms": _milliseconds(lambda: consensus.any_rank(*[False] * FLAGS), repeats),
            "step_after_ms": _milliseconds(lambda: agreement.due(0), repeats),
        }
    means.add("loss", losses)
    found["row_before_ms"] = _milliseconds(lambda: _row_before(means), max(repeats // 5, 3))
    found["row_after_ms"] = _milliseconds(row_after, max(repeats // 5, 3))
    dist.barrier()
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def measure(world: int, repeats: int) -> dict[str, float]:
    """The slowest worker's median of each time with `world` processes, which share this one's memory."""
    with tempfile.TemporaryDirectory(prefix="mtgen-control-") as folder:
        torch.multiprocessing.start_processes(_worker, (world, folder, repeats), nprocs=world, start_method="fork")
        workers = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    return {name: max(worker[name] for worker in workers) for name in workers[0]}


def carried(rows: list[dict[str, Any]], name: str) -> float:
    """The time at `CARRIED_TO` processes, by a line through the measured ones: a ring has 2 (N - 1) hops."""
    times = [row[name] for row in rows]
    slope, begin = np.polyfit([row["processes"] for row in rows], times, 1)
    return float(max(begin + slope * CARRIED_TO, *times))


def main(
    quick: Annotated[bool, quick_option("4, 8 and 16 processes instead of 8 to 64")] = False,
    json_file: JsonOption = None,
) -> None:
    """Measure with 8 to 64 processes, and carry the times to 1,024 by a line, hops being as fast as on loopback."""
    here, rows = machine(), []
    for world in (4, 8, 16) if quick else (8, 16, 32, 64):
        rows.append({"name": f"{world} processes", "processes": world, **measure(world, 20 if quick else 50)})
    times = [name for name in rows[0] if name.endswith("_ms")]
    rows.append({"name": f"carried to {CARRIED_TO:,}", **{name: carried(rows, name) for name in times}})
    report("milliseconds on the training thread, the slowest worker's median", here, rows, json_file)


if __name__ == "__main__":
    typer.run(main)
