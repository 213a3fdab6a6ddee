"""Which policy is worth it: policies x seeds on one data set at equal images, against single-task training and tuned fixed weights.

Delta-m is the field's average relative change of the tasks' test metrics against a network trained for each task alone (with generation,
which is always on), in percent, higher is better. Tuned scalarisation draws as many sets of fixed weights as `--trials` says, trains each
with the first seed, keeps the best by Delta-m, and is then run with every seed like the others. A run that is there already is not run
again, so that a study can be stopped and continued. It takes policies x seeds trainings: hours.
"""

import random
import statistics
from pathlib import Path
from typing import Annotated, Any

import typer
from common import machine, report

from mtgen.config import Config, load
from mtgen.errors import UserError
from mtgen.journal import read_journal
from mtgen.orchestrate.workers import run_on_ray
from mtgen.snapshot import Snapshots

ROOT = Path(__file__).resolve().parents[1]
POLICIES = ["equal", "upgrad", "cagrad", "nash_mtl", "aligned_mtl", "pcgrad", "fairgrad", "famo"]
METRICS = {"classification": "class_accuracy", "segmentation": "mask_miou", "reconstruction": "reconstruction_psnr"}


def trained(config: Config) -> dict[str, float]:
    """The last test metrics of a run, trained now where it is not finished yet."""
    done = [row.status for row in read_journal(config.folder) if row.status]
    if "FINISHED" not in done:
        config.folder.mkdir(parents=True, exist_ok=True)
        outcome = run_on_ray(config, snapshots=Snapshots)
        if outcome.status != "finished":
            raise UserError(f"{config.name}: the training {outcome.status}: {outcome.message}")
    last: dict[str, float] = {}
    for row in read_journal(config.folder):
        last |= row.values
    found = {}
    for task, metric in METRICS.items():
        values = [value for name, value in last.items() if name.rpartition("/")[2] == metric]
        if values:
            found[task] = values[0]
    return found


def delta_m(metrics: dict[str, float], alone: dict[str, float]) -> float:
    """Average relative change against single-task training, percent; all metrics are better when higher."""
    return 100 * statistics.mean(metrics[task] / alone[task] - 1 for task in alone)


def row_of(name: str, results: list[dict[str, float]], alone: dict[str, float]) -> dict[str, Any]:
    """A policy's means and spread over the seeds."""
    deltas = [delta_m(result, alone) for result in results]
    means = {task: statistics.mean(result[task] for result in results) for task in alone}
    spread = statistics.stdev(deltas) if len(deltas) > 1 else None
    return {"name": name, "delta_m_percent": statistics.mean(deltas), "spread": spread, **means, "deltas": deltas}


def main(
    data: Annotated[Path, typer.Option(help="data set")],
    runs: Annotated[Path, typer.Option(help="where the runs are kept")] = Path("runs/balancing-study"),
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings over the file's")] = None,
    policies: Annotated[str, typer.Option(help="names, separated by commas")] = ",".join(POLICIES),
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    trials: Annotated[int, typer.Option(min=0, help="sets of fixed weights that are tried; 0: no tuned scalarisation")] = 6,
    images: Annotated[int | None, typer.Option(help="images a run; default: 40,000, quick 2,000")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="one seed, few images, one trial: whether it runs")] = False,
    config: Annotated[Path, typer.Option(help="what is trained")] = ROOT / "configs/digits-32.yaml",
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the numbers to this file")] = None,
) -> None:
    """Train every policy with every seed and compare."""
    here = machine()
    images, seeds, trials = images or (2_000 if quick else 40_000), 1 if quick else seeds, min(trials, 1) if quick else trials

    def run(name: str, seed: int, *changes: str) -> dict[str, float]:
        common = [f"data.path={data.absolute()}", f"runs={runs.absolute()}", f"train.images={images}", f"evaluate.every={images}"]
        return trained(load(config, [*common, *(overrides or []), f"name={name}-{seed}", f"seed={seed}", *changes]))

    tasks = [task for task in load(config, ["data.path=x"]).task_settings() if task in METRICS]
    alone = {}
    for task in tasks:
        off = [f"tasks.{other}.weight=0" for other in tasks if other != task]
        alone[task] = statistics.mean(run(f"alone-{task}", seed, *off)[task] for seed in range(seeds))
    rows = [{"name": "each task alone", "delta_m_percent": 0.0, **alone}]
    for policy in policies.split(","):
        rows.append(row_of(policy, [run(policy, seed, f"balancing.gate={policy}") for seed in range(seeds)], alone))
    if trials:
        drawn = random.Random(0)
        sets = [[f"tasks.{task}.weight={2 ** drawn.uniform(-3, 3):.3f}" for task in tasks] for _ in range(trials)]
        best = max(range(trials), key=lambda n: delta_m(run(f"fixed{n}", 0, *sets[n]), alone))
        results = [run(f"fixed{best}", seed, *sets[best]) for seed in range(seeds)]
        rows.append(row_of(f"tuned fixed weights, best of {trials}", results, alone))
    report(f"{config.name}, {images:,} images, {seeds} seeds", here, rows, json_file)


if __name__ == "__main__":
    typer.run(main)
