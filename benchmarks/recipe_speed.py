"""A step of mtgen's networks beside one of the published recipe at equal widths and depth, and what both have learned after equal minutes.

mtgen's blocks are two dense 3x3 convolutions, its penalties finite differences on a quarter of the images; the published recipe
(`r3gan_reference.py`) has grouped bottleneck blocks and exact R1 + R2. Both draw digits for their class in plain loops of the same losses,
learning rates, augmentation and averaging, with the training split in memory. "dense, exact" says what the penalties alone do.
"channels first" is torch's usual layout in memory; all else is channels last. Ways take turns, four steps each, so that a machine that
others use too slows all alike; a ratio is the median over rounds. Then each way is trained for `--minutes` on one thread, two at a time
where there are two CPUs, and judged by readers that know nothing of it.
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
from common import ROOT, digits, machine, report
from plain_loop import PlainLoop, batches_of
from r3gan_reference import channels_first, exact, published

from mtgen.config import load
from mtgen.data.index import open_index
from mtgen.evaluation.evaluate import evaluate
from mtgen.evaluation.splits import SplitBatches
from mtgen.models.model import Model
from mtgen.utils import glibc_malloc

WIDTHS = "[64, 64, 32, 32]"
ALONE = [f"tasks.{task}.weight=0" for task in ("classification", "segmentation", "reconstruction")]
WAYS = {
    "published: grouped, exact R1 + R2": published,
    "published, channels first": channels_first,
    "dense, exact R1 + R2": exact,
    "mtgen: dense, finite differences": PlainLoop,
}
METRICS = ["generated/cas", "generated/diversity", "distribution/fd"]
SAMPLES = 2_000


def loop(way: str, precision: str, overrides: list[str], kept: int | None = None) -> PlainLoop:
    """A plain loop of one way; `kept` batches in memory, by default the whole split."""
    config = load(ROOT / "configs/digits-32.yaml", [*overrides, f"precision={precision}"])
    count = kept or len(open_index(config.data.path, config.data.train_split)) // config.batch_size
    return WAYS[way](config, batches_of(config, "cpu", count), "cpu")


def speeds(overrides: list[str], rounds: int) -> list[dict[str, Any]]:
    """A row for every way and precision; the first round warms up."""
    loops = {
        (way, precision): loop(way, precision, overrides, kept=8) for way in WAYS for precision in ("fp32", "bf16")
    }
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in loops}
    for _ in range(rounds + 1):
        for key, plain in loops.items():
            begin = time.perf_counter()
            for _ in range(
                4
            ):  # a penalty of every fourth image is in each step; four steps even out what differs between them
                plain.step()
            seconds[key].append((time.perf_counter() - begin) / 4)
    base = seconds[next(iter(WAYS)), "fp32"][1:]
    return [
        {
            "name": way,
            "precision": precision,
            "parameters": sum(
                p.numel() for network in (plain.networks.generator, plain.networks.side) for p in network.parameters()
            ),
            "ms_per_step": 1e3 * statistics.median(seconds[way, precision][1:]),
            "images_per_second": len(plain.batches[0]) / statistics.median(seconds[way, precision][1:]),
            "times_published_fp32": statistics.median(
                a / b for a, b in zip(base, seconds[way, precision][1:], strict=True)
            ),
        }
        for (way, precision), plain in loops.items()
    ]


def learned(way: str, precision: str, overrides: list[str], minutes: float) -> dict[str, Any]:
    """Train for so many minutes on one thread; what the averaged generator draws then, in numbers."""
    glibc_malloc.tune_this_process()
    torch.set_num_threads(1)
    plain = loop(way, precision, overrides)
    config, begin = plain.config, time.monotonic()
    while time.monotonic() < begin + 60 * minutes:
        plain.step()
    plain.average.copy_to_live()
    train, test = (open_index(config.data.path, split) for split in (config.data.train_split, config.data.test_split))
    model = Model(plain.networks, config, train.card)
    numbers = evaluate(
        model, SplitBatches(config, test), SplitBatches(config, train), samples=SAMPLES, seed=0, metrics=METRICS
    )
    return {"name": way, "precision": precision, "minutes": minutes, "images": plain.images, **numbers}


def main(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings over the file's")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="fewer rounds and short trainings, some minutes")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the numbers to this file")] = None,
    data: Annotated[
        Path | None, typer.Option(help="data set; default: ../shared/data/digits, else drawn digits")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="rounds of four steps; default: 15, quick 5")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="of each training, 0: none; default: 10, quick 0.5")
    ] = None,
) -> None:
    """Compare steps in fp32 and bf16 on one thread, then what is learned in equal minutes in each way's faster precision."""
    glibc_malloc.tune_this_process()
    here, minutes = machine(), (0.5 if quick else 10.0) if minutes is None else minutes
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mtgen-recipe-") as temporary:
        given = [
            f"data.path={digits(data, Path(temporary))}",
            f"generator.widths={WIDTHS}",
            f"discriminator.widths={WIDTHS}",
        ]
        given += [*ALONE, *(overrides or [])]
        rows = speeds(given, rounds or (5 if quick else 15))
        report("A step on one thread", here, rows, None)
        if minutes:
            best = {
                way: max((row for row in rows if row["name"] == way), key=lambda row: row["images_per_second"])
                for way in WAYS
            }
            jobs = [
                (way, row["precision"]) for way, row in best.items() if WAYS[way] is not channels_first
            ]  # the same, slower
            at_once = min(2, len(os.sched_getaffinity(0)))
            with ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn")) as pool:
                waiting = [pool.submit(learned, way, precision, given, minutes) for way, precision in jobs]
                for found in (future.result() for future in waiting):
                    next(r for r in rows if (r["name"], r["precision"]) == (found["name"], found["precision"])).update(
                        found
                    )
        report(
            f"mtgen's step and the published one, widths {WIDTHS}, and after {minutes:g} minutes each",
            here,
            rows,
            json_file,
        )


if __name__ == "__main__":
    typer.run(main)
