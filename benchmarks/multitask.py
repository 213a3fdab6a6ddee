"""Sharing pays, or does not: each task alone against all of them together, at equal numbers of images seen, with all and with few labels.

"Alone" is as pure as it gets. A reading task alone is supervised training: no generator, no logit, every image is read and no condition is
encoded. Generation alone has no task but its own, and is asked for classes as together. Together are all tasks of the configuration, and
everything else (networks, rates, augmentation, batch, order of the images) is the same.

What is shared is what the labels say: the classes, masks and boxes of so many of the samples are known, drawn independently of each other.
Captions and sounds are not asked for: they would tell the class of every image, however few classes are known. Masks and boxes of digits
tell the class too, so each kind of labels helps the others; that is a part of what sharing brings, and counted as such.

Every run is a process of its own on one thread. Its result is kept in `--work`; what is there already is not run again, so that the
benchmark can be stopped at any time and goes on with the same command.
"""

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from common import ROOT, digits, machine, report

from mtgen.config import load

READING = ("classification", "segmentation", "detection")
TELLING = ("caption", "sound")
"""Conditions that are left out: they would tell what the missing labels do not."""

NUMBERS = {
    "classification": ("classification", "accuracy"),
    "segmentation": ("segmentation", "mIoU"),
    "detection": ("detection", "AP50"),
    "cas": ("generation", "CAS"),
    "diversity": ("generation", "diversity"),
}
"""What is measured -> the task whose number it is, and its name."""


@dataclass(frozen=True)
class Run:
    """One training: which tasks, how many labels, which seed."""

    variant: str
    share: float
    seed: int

    def overrides(self, tasks: list[str], conditions: list[str], images: int) -> list[str]:
        """Its settings over the configuration's."""
        known = {name: self.share for name in ("class", "mask", "boxes")}
        together = self.variant == "together"
        kept = tasks if together else [self.variant]
        asked = [c for c in conditions if c not in TELLING] if together else ["class"] * (self.variant == "generation")
        return [
            *(f"tasks.{task}.weight=0" for task in tasks if task not in kept),
            *(f"conditions.{condition}.share=0" for condition in conditions if condition not in asked),
            *(["conditions.class.share=0.8"] if "class" in asked else []),
            f"data.labelled={json.dumps(known)}",
            f"seed={self.seed}",
            f"train.images={images}",
            f"train.log_every={max(images // 10, 1)}",
            f"checkpoint.every={max(images // 4, 1)}",
            f"evaluate.every={2 * images}",
            "workers=0",
            "device=cpu",
        ]


def result_of(run: Run, config: Path, settings: list[str], work: Path, samples: int) -> dict[str, Any]:
    """The run's row, from `work` where it is there already."""
    text = json.dumps([load(config, ["name=x", *settings]).model_dump(mode="json"), samples], sort_keys=True)
    name = f"{run.variant}-{run.share:g}-{run.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    kept, begin = work / f"{name}.json", time.monotonic()
    if not kept.is_file():
        command = [sys.executable, str(ROOT / "benchmarks/multitask_run.py"), str(config), *settings, f"name={name}", f"runs={work}/runs"]
        paths = os.pathsep.join(p for p in [str(ROOT), os.environ.get("PYTHONPATH", "")] if p)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        with (work / f"{name}.log").open("a", encoding="utf-8") as log:
            ended = subprocess.run([*command, "--samples", str(samples)], env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        if ended.returncode:
            raise RuntimeError(f"{name} failed; look into {work / f'{name}.log'}")
        minutes = (time.monotonic() - begin) / 60
        row = {
            "variant": run.variant,
            "share": run.share,
            "seed": run.seed,
            "minutes": minutes,
            **json.loads(ended.stdout.splitlines()[-1]),
        }
        part = kept.with_suffix(".part")
        part.write_text(json.dumps(row) + "\n", encoding="utf-8")
        part.rename(kept)
    row = json.loads(kept.read_text(encoding="utf-8"))
    numbers = ", ".join(f"{NUMBERS[key][1]} {row[key]:.3f}" for key in NUMBERS if key in row)
    print(f"{row['minutes']:5.1f} min  {run.share:6.1%} of labels, seed {run.seed}, {run.variant}: {numbers}", flush=True)
    return row


def _with_spread(values: list[float], sign: str) -> str:
    """The mean, and the standard deviation over the seeds where there are several."""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.3f}{spread}"


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for every share and number: alone, together, the difference seed by seed, and minutes of both; `each_...` hold every seed's."""
    table = []
    for share in sorted({row["share"] for row in rows}, reverse=True):
        for key, (task, name) in NUMBERS.items():
            found = {v: {r["seed"]: r for r in rows if r["share"] == share and r["variant"] == v and key in r} for v in (task, "together")}
            seeds = sorted(found[task].keys() & found["together"].keys())
            if not seeds:
                continue
            alone, together = ([found[v][seed][key] for seed in seeds] for v in (task, "together"))
            gain = [b - a for a, b in zip(alone, together, strict=True)]
            row: dict[str, Any] = {"name": f"{task} {name}", "labels": f"{share:.1%}"}
            for title, values in (("alone", alone), ("together", together), ("gain", gain)):
                row |= {title: _with_spread(values, "+" if title == "gain" else ""), f"each_{title}": values}
            each = [[found[v][seed]["minutes"] for seed in seeds] for v in (task, "together")]
            row["minutes"] = " / ".join(f"{statistics.mean(values):.1f}" for values in each)
            row["each_minutes"] = each
            table.append(row)
    return table


def main(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings over the file's, for all runs")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="one seed, all labels and a tenth of them, a tenth of the images")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the numbers to this file")] = None,
    data: Annotated[Path | None, typer.Option(help="data set; default: ../shared/data/digits, else drawn digits")] = None,
    config: Annotated[Path, typer.Option(help="what is trained")] = ROOT / "configs/digits-all-32.yaml",
    images: Annotated[int | None, typer.Option(min=1, help="that each run sees; default: 16,000, quick a tenth")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="runs of each kind; default: 2, quick 1")] = None,
    shares: Annotated[str | None, typer.Option(help="shares of labels that are known; default: 1.0,0.1,0.025, quick 1.0,0.1")] = None,
    parallel: Annotated[int, typer.Option(min=1, help="runs at a time, a thread each")] = 2,
    samples: Annotated[int, typer.Option(min=100, help="images to generate for CAS and diversity")] = 2_000,
    work: Annotated[Path, typer.Option(help="folder in which results and runs are kept")] = ROOT / "runs/multitask",
) -> None:
    """Train every task alone and all together, for every share of labels and every seed, and compare."""
    here, work = machine(), work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    images, seeds = images or (1_600 if quick else 16_000), seeds or (1 if quick else 2)
    known = [float(share) for share in (shares or ("1.0,0.1" if quick else "1.0,0.1,0.025")).split(",")]
    base = [f"data.path={digits(data, work)}", *(overrides or [])]
    settings = load(config, base)
    tasks, conditions = list(settings.task_settings()), list(settings.condition_settings())
    variants = ["together", *(task for task in ("generation", *READING) if task in tasks)]
    runs = [Run(variant, share, seed) for share in known for seed in range(seeds) for variant in variants]
    with ThreadPoolExecutor(parallel) as pool:
        waiting = [pool.submit(result_of, run, config, [*base, *run.overrides(tasks, conditions, images)], work, samples) for run in runs]
        try:
            rows = [future.result() for future in waiting]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    report(f"Alone and together: {config.name}, {images:,} images each", here, compared(rows), json_file)


if __name__ == "__main__":
    typer.run(main)
