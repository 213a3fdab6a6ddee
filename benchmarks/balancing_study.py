"""Compare balancing policies over seeds with single-task training and with tuned fixed weights, at equal images seen.

A policy weights the tasks at the discriminator's features in the discriminator step; the generator step uses equal
weights (with `--both`, the policy too). Delta-m is the average relative change of the tasks' test metrics against each
task alone, in percent, higher is better (Maninis et al. 2019); here over accuracy, mIoU, AP50, and CAS and diversity of
generated images.

Tuned fixed weights: `--trials` sets of weights of the discriminative tasks in the discriminator step are sampled,
log-uniformly from 1 to 128 times the configuration's (generation's gradient is that much larger than theirs). The best
set by Delta-m of the first seed is trained with all seeds.
"""

import math
import random
import statistics
from pathlib import Path
from typing import Annotated, Any

import typer
from common import ROOT, DataOption, JsonOption, OverridesArgument, machine, quick_option, report
from study_runner import DISCRIMINATIVE_TASKS, METRICS, Run, Study, base_settings, with_spread

from mtgen.config import Config, load

POLICIES = ["equal", "balancer", "imtl_g", "aligned_mtl", "upgrad", "nash_mtl", "cagrad", "fairgrad", "pcgrad", "famo"]
GENERATOR_WEIGHTS = ("agreement", "distillation")
"""Settings that weight a discriminative task in the generator step."""
MAX_FACTOR = 128
"""Largest factor of a sampled fixed weight."""


def delta_m(row: dict[str, Any], alone: dict[str, float]) -> float:
    """Average relative change against single-task training, percent; all metrics are better when higher."""
    return 100 * statistics.mean(row[key] / alone[key] - 1 for key in alone)


def fixed(config: Config, factors: dict[str, float]) -> tuple[str, ...]:
    """Overrides that multiply the weights of tasks in the discriminator step only."""
    overrides = []
    for task, factor in factors.items():
        settings = config.tasks[task]
        overrides.append(f"tasks.{task}.weight={settings.weight * factor:.4g}")
        for name in GENERATOR_WEIGHTS:
            if hasattr(settings, name):  # keep the task's weight in the generator step, which is relative to `weight`
                overrides.append(f"tasks.{task}.{name}={getattr(settings, name) / factor:.4g}")
    return tuple(overrides)


def row_of(name: str, rows: list[dict[str, Any]], alone: dict[str, float]) -> dict[str, Any]:
    """One row with a policy's means and spread over the seeds."""
    deltas = [delta_m(row, alone) for row in rows]
    numbers = {" ".join(METRICS[key]): with_spread([row[key] for row in rows]) for key in alone}
    minutes = statistics.mean(row["minutes"] for row in rows)
    return {
        "name": name,
        "delta_m_percent": with_spread(deltas, "+"),
        **numbers,
        "minutes": minutes,
        "deltas": deltas,
        "rows": rows,
    }


def together(policy: str, overrides: tuple[str, ...], seeds: int) -> list[Run]:
    """Runs of all tasks under one policy."""
    return [Run("together", seed, policy=policy, settings=overrides) for seed in range(seeds)]


def tuned_weights(
    study: Study, settings: Config, tasks: list[str], alone: dict[str, float], trials: int, seeds: int
) -> dict[str, Any]:
    """Try sets of fixed weights on the first seed, train the best one with all seeds; returns its row."""
    rng = random.Random(0)
    sets = [
        fixed(settings, {task: 2 ** rng.uniform(0, math.log2(MAX_FACTOR)) for task in tasks}) for _ in range(trials)
    ]
    tried = study.results([run for k, overrides in enumerate(sets) for run in together(f"fixed {k}", overrides, 1)])
    deltas = [delta_m(row, alone) for row in tried]
    best = max(range(trials), key=deltas.__getitem__)
    rows = study.results(together(f"fixed {best}", sets[best], seeds))
    row = row_of(f"tuned fixed weights, best of {trials}", rows, alone)
    return row | {"weights": list(sets[best]), "trials": deltas}


def main(
    overrides: OverridesArgument = None,
    quick: Annotated[bool, quick_option("one seed, three policies, one trial, a tenth of the images")] = False,
    json_file: JsonOption = None,
    data: DataOption = None,
    config: Annotated[Path, typer.Option(help="configuration")] = ROOT / "configs/digits-all-32.yaml",
    policies: Annotated[str | None, typer.Option(help="policies, separated by commas; default: ten of them")] = None,
    both: Annotated[bool, typer.Option("--both", help="use the policy in the generator step too")] = False,
    images: Annotated[
        int | None, typer.Option(min=1, help="training images per run; default: 10,000, quick: 1,000")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="number of seeds; default: 3, quick: 1")] = None,
    trials: Annotated[
        int | None, typer.Option(min=0, help="number of sets of fixed weights; default: 6, quick: 1")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="number of runs at a time, each on one thread")] = 2,
    samples: Annotated[int, typer.Option(min=100, help="images to generate for CAS and diversity")] = 2_000,
    work: Annotated[Path, typer.Option(help="folder for runs and results")] = ROOT / "runs/balancing-study",
) -> None:
    """Train each task alone, and all together under every policy with every seed, and compare."""
    here, work = machine(), work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    images, seeds = images or (1_000 if quick else 10_000), seeds or (1 if quick else 3)
    trials = (1 if quick else 6) if trials is None else trials
    names = policies.split(",") if policies else POLICIES[: 3 if quick else None]
    base = base_settings(data, work, overrides)
    settings = load(config, base)
    tasks = [task for task in ("generation", *DISCRIMINATIVE_TASKS) if task in settings.task_settings()]
    study, gate = Study(config, base, images, samples, work, parallel), "weighting" if both else "discriminator"
    singles = study.results([Run(task, seed) for seed in range(seeds) for task in tasks])
    found = {
        key: [row[key] for row in singles if row["variant"] == task and key in row]
        for key, (task, _) in METRICS.items()
    }
    alone = {key: statistics.mean(values) for key, values in found.items() if values}
    spread = {" ".join(METRICS[key]): with_spread(found[key]) for key in alone}
    table: list[dict[str, Any]] = [{"name": "each task alone", "delta_m_percent": "0", **spread}]
    rows = study.results([run for name in names for run in together(name, (f"balancing.{gate}={name}",), seeds)])
    table += [row_of(name, rows[k * seeds : (k + 1) * seeds], alone) for k, name in enumerate(names)]
    if trials:
        discriminative = [task for task in tasks if task in DISCRIMINATIVE_TASKS]
        table.append(tuned_weights(study, settings, discriminative, alone, trials, seeds))
    report(f"{config.name}, {images:,} images per run, {seeds} seeds", here, table, json_file)


if __name__ == "__main__":
    typer.run(main)
