"""Training step of mtgen compared with the R3GAN recipe at equal size: speed, and quality after equal time.

mtgen's blocks are two dense 3x3 convolutions, and its penalties are finite differences on a quarter of the images. The
R3GAN recipe (`r3gan_reference.py`) has grouped bottleneck blocks and exact R1 + R2. Both generate digits by class in
plain loops with the same losses, learning rates, augmentation and averaging, with the training split in memory.
"dense, exact" isolates the effect of the penalties. "channels first" is torch's default memory format; all others are
channels last.

The variants take turns, four steps each, so that other work on the machine slows all of them alike; a ratio is the
median over rounds. Then each variant is trained for `--minutes` on one thread (two at a time on two CPUs) and evaluated
by independently trained reference models.
"""

import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import ROOT, DataOption, JsonOption, OverridesArgument, digits, machine, quick_option, report
from plain_loop import PlainLoop, load_batches
from r3gan_reference import exact_penalties, r3gan, r3gan_channels_first

from mtgen.config import load
from mtgen.data.index import open_index
from mtgen.evaluation.evaluate import evaluate
from mtgen.evaluation.splits import SplitBatches
from mtgen.models.model import Model
from mtgen.utils import glibc_malloc

WIDTHS = "[64, 64, 32, 32]"
GENERATION_ONLY = [f"tasks.{task}.weight=0" for task in ("classification", "segmentation", "reconstruction")]
VARIANTS = {
    "R3GAN: grouped, exact R1 + R2": r3gan,
    "R3GAN, channels first": r3gan_channels_first,
    "dense, exact R1 + R2": exact_penalties,
    "mtgen: dense, finite differences": PlainLoop,
}
METRICS = ["generated/cas", "generated/diversity", "distribution/fd"]
SAMPLES = 2_000


def build_loop(variant: str, precision: str, overrides: list[str], batches: int | None = None) -> PlainLoop:
    """A plain loop of one variant with this number of batches in memory; default: the whole split."""
    config = load(ROOT / "configs/digits-32.yaml", [*overrides, f"precision={precision}"])
    count = batches or len(open_index(config.data.path, config.data.train_split)) // config.batch_size
    return VARIANTS[variant](config, load_batches(config, "cpu", count), "cpu")


def speeds(overrides: list[str], rounds: int) -> list[dict[str, Any]]:
    """Measure the speed of every variant and precision, after one warm-up round; returns one row for each."""
    keys = [(variant, precision) for variant in VARIANTS for precision in ("fp32", "bf16")]
    loops = {key: build_loop(*key, overrides, batches=8) for key in keys}
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in loops}
    for _ in range(rounds + 1):
        for key, loop in loops.items():
            begin = time.perf_counter()
            for _ in range(4):  # each step penalizes another quarter of the images; four steps cover all
                loop.step()
            seconds[key].append((time.perf_counter() - begin) / 4)
    base = seconds[keys[0]][1:]
    rows = []
    for (variant, precision), loop in loops.items():
        own, networks = seconds[variant, precision][1:], (loop.networks.generator, loop.networks.side)
        rows.append(
            {
                "name": variant,
                "precision": precision,
                "parameters": sum(p.numel() for network in networks for p in network.parameters()),
                "ms_per_step": 1e3 * statistics.median(own),
                "images_per_second": len(loop.batches[0]) / statistics.median(own),
                "times_r3gan_fp32": statistics.median(a / b for a, b in zip(base, own, strict=True)),
            }
        )
    return rows


def train(variant: str, precision: str, overrides: list[str], minutes: float) -> dict[str, Any]:
    """Train for this many minutes on one thread, and evaluate the averaged generator; returns a row."""
    glibc_malloc.tune_this_process()
    torch.set_num_threads(1)
    loop = build_loop(variant, precision, overrides)
    config, begin = loop.config, time.monotonic()
    while time.monotonic() < begin + 60 * minutes:
        loop.step()
    loop.average.copy_to_live()
    seen, test = (open_index(config.data.path, split) for split in (config.data.train_split, config.data.test_split))
    model = Model(loop.networks, config, seen.card)
    numbers = evaluate(
        model, SplitBatches(config, test), SplitBatches(config, seen), samples=SAMPLES, seed=0, metrics=METRICS
    )
    return {"name": variant, "precision": precision, "minutes": minutes, "images": loop.images, **numbers}


def train_all(rows: list[dict[str, Any]], overrides: list[str], minutes: float) -> None:
    """Train every variant in its faster precision, and add the results to its row."""
    jobs = {}
    for row in sorted(rows, key=lambda row: row["images_per_second"]):
        if VARIANTS[row["name"]] is not r3gan_channels_first:  # learns the same, only slower
            jobs[row["name"]] = row
    at_once = min(2, len(os.sched_getaffinity(0)))
    with ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn")) as pool:
        running = [
            (row, pool.submit(train, row["name"], row["precision"], overrides, minutes)) for row in jobs.values()
        ]
        for row, future in running:
            row.update(future.result())


def main(
    overrides: OverridesArgument = None,
    quick: Annotated[bool, quick_option("fewer rounds and short trainings")] = False,
    json_file: JsonOption = None,
    data: DataOption = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="rounds of four steps; default: 15, quick: 5")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="minutes per training, 0: no training; default: 10, quick: 0.5")
    ] = None,
) -> None:
    """Compare steps in fp32 and bf16 on one thread, then the quality after equal time in the faster precision."""
    glibc_malloc.tune_this_process()
    here, minutes = machine(), (0.5 if quick else 10.0) if minutes is None else minutes
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mtgen-recipe-") as temporary:
        widths = [f"generator.widths={WIDTHS}", f"discriminator.widths={WIDTHS}"]
        all_overrides = [f"data.path={digits(data, Path(temporary))}", *widths, *GENERATION_ONLY, *(overrides or [])]
        rows = speeds(all_overrides, rounds or (5 if quick else 15))
        report("A step on one thread", here, rows, None)
        if minutes:
            train_all(rows, all_overrides, minutes)
        title = f"mtgen's step and R3GAN's, widths {WIDTHS}, and their quality after {minutes:g} minutes"
        report(title, here, rows, json_file)


if __name__ == "__main__":
    typer.run(main)
