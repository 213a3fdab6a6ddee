"""Training speed of the whole stack (Ray, DeepSpeed, DALI, tracking) compared with a plain torch loop.

The plain loop has the same networks, steps, Adam and averaged weights, and its batches in memory. It runs inside the
worker that Ray placed, alternating with the training round by round on the same CPU and threads. So other work on the
machine slows both alike, and the ratio is taken pair by pair. Images per second of CPU time exclude other work.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from common import ROOT, DataOption, JsonOption, OverridesArgument, digits, machine, quick_option, report
from plain_loop import PlainLoop, load_batches

from mtgen.config import Config, load
from mtgen.errors import UserError
from mtgen.launchers.ray_workers import run_on_ray
from mtgen.tracking.journal import read_journal


def plain_rounds(config: Config, cpus_per_worker: int) -> Any:
    """Rounds of a plain torch loop, which take the place of snapshots between two rounds of the training.

    Returns:
        A function of (model, images seen) that trains `evaluate.every` images with the plain loop, and returns its
        speed and that of the training's last round.
    """
    import torch

    from mtgen.config import resolve_device

    if cpus_per_worker == 1 and config.workers == 1:  # pin everything to one CPU: DALI's thread and the metrics' sender
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
    device = resolve_device(config)
    group = torch.distributed.new_group([0], use_local_synchronization=True)
    loop = PlainLoop(config, load_batches(config, device), device, group)
    ended = [time.process_time()]

    def plain_round(model: Any, images: int) -> tuple[dict[str, float], list[Path]]:
        before, threads = time.process_time(), torch.get_num_threads()
        torch.set_num_threads(cpus_per_worker * config.workers)
        begin = time.monotonic()
        for _ in range(config.evaluate.every // config.batch_size):
            loop.step()
        if device == "cuda":
            torch.cuda.synchronize()
        wall, cpu = time.monotonic() - begin, time.process_time() - before
        torch.set_num_threads(threads)
        numbers = {
            "plain/images_per_second": config.evaluate.every / wall,
            "plain/images_per_cpu_second": config.evaluate.every / cpu,
            "cpu/images_per_cpu_second": config.evaluate.every / config.workers / (before - ended[0]),
        }
        ended[0] = time.process_time()
        return numbers, []

    return plain_round


def measure(config: Config, workers: int, cpus: int, rounds: int, images: int) -> list[dict[str, Any]]:
    """Measure the training and the plain loop, after one warm-up round; returns one row for each."""
    changes = {
        "name": f"speed-{workers}-{cpus}-{config.batch_size}",
        "workers": workers,
        "train": config.train.model_copy(
            update={"images": (rounds + 1) * images, "log_every": images, "max_minutes": None, "max_restarts": 0}
        ),
        "checkpoint": config.checkpoint.model_copy(update={"every": 2 * rounds * images}),
        "evaluate": config.evaluate.model_copy(update={"every": images}),
    }
    config, cpus_per_worker = config.model_copy(update=changes), cpus // workers
    config.folder.mkdir(parents=True)
    outcome = run_on_ray(config, snapshots=lambda settings: plain_rounds(settings, cpus_per_worker), cpus=cpus)
    if outcome.status != "finished":
        raise UserError(f"{config.name}: training {outcome.status}: {outcome.message}")
    values = [row.values for row in read_journal(config.folder)]

    def logged(name: str) -> list[float]:
        return [row[name] for row in values if name in row][1:]

    ours, plain = logged("speed/images_per_second"), logged("plain/images_per_second")
    ours_cpu, plain_cpu = logged("cpu/images_per_cpu_second"), logged("plain/images_per_cpu_second")
    threads = {"workers": workers, "cpus": cpus, "batch": config.batch_size, "precision": config.precision}
    return [
        {
            "name": "mtgen",
            **threads,
            "images_per_second": statistics.median(ours),
            "images_per_cpu_second": statistics.median(ours_cpu),
            "share_of_plain": statistics.median(a / b for a, b in zip(ours, plain, strict=True)),
            "share_of_plain_in_cpu_time": statistics.median(a / b for a, b in zip(ours_cpu, plain_cpu, strict=True)),
            "data_wait_share": statistics.median(logged("speed/data_wait_share")),
            "rounds": ours,
        },
        {
            "name": f"plain torch loop, {cpus} thread{'s' * (cpus > 1)}",
            **threads,
            "workers": 0,
            "images_per_second": statistics.median(plain),
            "images_per_cpu_second": statistics.median(plain_cpu),
            "rounds": plain,
        },
    ]


def main(
    overrides: OverridesArgument = None,
    quick: Annotated[bool, quick_option("fewer and shorter rounds")] = False,
    json_file: JsonOption = None,
    data: DataOption = None,
    config: Annotated[Path, typer.Option(help="configuration")] = ROOT / "configs/digits-32.yaml",
    steps: Annotated[int | None, typer.Option(min=1, help="steps per round; default: 50, quick: 30")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="pairs of rounds; default: 15, quick: 5")] = None,
) -> None:
    """Compare mtgen with a plain torch loop on this machine: one worker on one CPU, and two workers on two CPUs.

    Two workers first share the batch of one worker, then each gets a batch of that size.
    """
    here = machine()
    rounds, steps = rounds or (5 if quick else 15), steps or (30 if quick else 50)
    with tempfile.TemporaryDirectory(prefix="mtgen-speed-") as temporary:
        settings = load(
            config, [f"data.path={digits(data, Path(temporary))}", f"runs={temporary}/runs", *(overrides or [])]
        )
        rows = []
        for workers, times in ((1, 1), (2, 1), (2, 2)):
            if workers <= here["cpus"]:
                scaled = settings.model_copy(update={"batch_size": times * settings.batch_size})
                rows += measure(scaled, workers, workers, rounds, steps * scaled.batch_size)
        alone = rows[0]["images_per_second"]
        for row in rows:
            if row["name"] == "mtgen":
                row["times_one_worker"] = row["images_per_second"] / alone
    report(f"Training speed: {config.name}, medians of {rounds} rounds of {steps} steps", here, rows, json_file)


if __name__ == "__main__":
    typer.run(main)
