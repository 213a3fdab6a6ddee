"""Which policy is worth it: policies x seeds at equal images, against single-task training and fixed weights tuned at the same length.

A policy weighs the tasks at the discriminator's features in its own step; the generator's step has equal weights (`--both`: the policy's
too). Delta-m is the field's average relative change of the tasks' test metrics against each task alone, in percent, higher is better
(Maninis et al. 2019); here over accuracy, mIoU, AP50, and CAS and diversity of what is generated. Tuned fixed weights: `--trials` sets of
weights of the reading tasks in the discriminator's step are drawn, log-uniform from 1 to 128 times the configuration's (generation's
gradient is that much longer than theirs), the best by Delta-m of the first seed is trained with all seeds.
"""

import random
import statistics
from pathlib import Path
from typing import Annotated, Any

import typer
from common import ROOT, machine, report
from study_runner import NUMBERS, READING, Run, Study, base_settings, with_spread

from mtgen.config import Config, load

POLICIES = ["equal", "balancer", "imtl_g", "aligned_mtl", "upgrad", "nash_mtl", "cagrad", "fairgrad", "pcgrad", "famo"]
OWN = ("agreement", "distillation")
"""Weights of a reading task in the generator's step."""


def delta_m(row: dict[str, Any], alone: dict[str, float]) -> float:
    """Average relative change against single-task training, percent; all numbers are better when higher."""
    return 100 * statistics.mean(row[key] / alone[key] - 1 for key in alone)


def fixed(config: Config, times: dict[str, float]) -> tuple[str, ...]:
    """Settings that multiply the weights of tasks in the discriminator's step alone."""
    words = []
    for task, factor in times.items():
        settings = config.tasks[task]
        words.append(f"tasks.{task}.weight={settings.weight * factor:.4g}")
        words += [f"tasks.{task}.{own}={getattr(settings, own) / factor:.4g}" for own in OWN if hasattr(settings, own)]
    return tuple(words)


def row_of(name: str, rows: list[dict[str, Any]], alone: dict[str, float]) -> dict[str, Any]:
    """A policy's means and spread over the seeds."""
    deltas = [delta_m(row, alone) for row in rows]
    numbers = {f"{NUMBERS[key][0]} {NUMBERS[key][1]}": with_spread([row[key] for row in rows]) for key in alone}
    minutes = statistics.mean(row["minutes"] for row in rows)
    return {
        "name": name,
        "delta_m_percent": with_spread(deltas, "+"),
        **numbers,
        "minutes": minutes,
        "deltas": deltas,
        "rows": rows,
    }


def main(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings over the file's, for all runs")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="one seed, three policies, one trial, a tenth of the images")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the numbers to this file")] = None,
    data: Annotated[
        Path | None, typer.Option(help="data set; default: ../shared/data/digits, else drawn digits")
    ] = None,
    config: Annotated[Path, typer.Option(help="what is trained")] = ROOT / "configs/digits-all-32.yaml",
    policies: Annotated[str | None, typer.Option(help="names, separated by commas; default: ten of them")] = None,
    both: Annotated[bool, typer.Option("--both", help="the policy in the generator's step too")] = False,
    images: Annotated[
        int | None, typer.Option(min=1, help="that each run sees; default: 10,000, quick a tenth")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="default: 3, quick 1")] = None,
    trials: Annotated[
        int | None, typer.Option(min=0, help="sets of fixed weights that are tried; default: 6, quick 1")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="runs at a time, a thread each")] = 2,
    samples: Annotated[int, typer.Option(min=100, help="images to generate for CAS and diversity")] = 2_000,
    work: Annotated[Path, typer.Option(help="folder in which results and runs are kept")] = ROOT
    / "runs/balancing-study",
) -> None:
    """Train each task alone, and all together under every policy with every seed, and compare."""
    here, work = machine(), work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    images, seeds = images or (1_000 if quick else 10_000), seeds or (1 if quick else 3)
    trials = (1 if quick else 6) if trials is None else trials
    names = policies.split(",") if policies else POLICIES[: 3 if quick else None]
    base = base_settings(data, work, overrides)
    settings = load(config, base)
    tasks = [task for task in ("generation", *READING) if task in settings.task_settings()]
    study, gate = Study(config, base, images, samples, work, parallel), "weighting" if both else "discriminator"

    def together(policy: str, words: tuple[str, ...], numbers: range) -> list[Run]:
        return [Run("together", seed, policy=policy, settings=words) for seed in numbers]

    by_policy = {name: together(name, (f"balancing.{gate}={name}",), range(seeds)) for name in names}
    singles = study.results([Run(task, seed) for seed in range(seeds) for task in tasks])
    found = {
        key: [row[key] for row in singles if row["variant"] == task and key in row]
        for key, (task, _) in NUMBERS.items()
    }
    alone = {key: statistics.mean(values) for key, values in found.items() if values}
    rows = study.results([run for runs in by_policy.values() for run in runs])
    table = [
        {
            "name": "each task alone",
            "delta_m_percent": "0",
            **{" ".join(NUMBERS[key]): with_spread(found[key]) for key in alone},
        }
    ]
    table += [row_of(name, rows[k * seeds : (k + 1) * seeds], alone) for k, name in enumerate(names)]
    if trials:
        drawn = random.Random(0)
        reading = [task for task in tasks if task in READING]
        sets = [fixed(settings, {task: 2 ** drawn.uniform(0, 7) for task in reading}) for _ in range(trials)]
        tried = study.results([run for k, words in enumerate(sets) for run in together(f"fixed {k}", words, range(1))])
        best = max(range(trials), key=lambda k: delta_m(tried[k], alone))
        row = row_of(
            f"tuned fixed weights, best of {trials}",
            study.results(together(f"fixed {best}", sets[best], range(seeds))),
            alone,
        )
        table.append(row | {"weights": list(sets[best]), "trials": [delta_m(row, alone) for row in tried]})
    report(f"{config.name}, {images:,} images, {seeds} seeds", here, table, json_file)


if __name__ == "__main__":
    typer.run(main)
