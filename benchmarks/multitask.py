"""Does multi-task training pay? Each task alone compared with all tasks together, with all and with few labels.

Both see the same number of images. A discriminative task alone is plain supervised training: no generator, no
adversarial logit, and no conditions. Generation alone is class-conditional, as it is together. "Together" trains all
tasks of the configuration; everything else (networks, learning rates, augmentation, batches, order) is the same.

Labels are withheld independently for classes, masks and boxes. Conditioning on captions and sounds is switched off,
since they reveal the class of every image. Masks and boxes of digits reveal the class too, so each kind of label helps
the other tasks; that is part of the benefit of sharing and counts as such.
"""

import statistics
from pathlib import Path
from typing import Annotated, Any

import typer
from common import ROOT, DataOption, JsonOption, OverridesArgument, machine, quick_option, report
from study_runner import DISCRIMINATIVE_TASKS, METRICS, Run, Study, base_settings, with_spread

from mtgen.config import load


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare alone and together; one row per fraction of labels and metric.

    A row has the means, the gain, and the minutes of both; `each_...` are lists with the values of every seed.
    """
    table = []
    for share in sorted({row["share"] for row in rows}, reverse=True):
        for key, (task, name) in METRICS.items():
            found = {
                v: {r["seed"]: r for r in rows if r["share"] == share and r["variant"] == v and key in r}
                for v in (task, "together")
            }
            seeds = sorted(found[task].keys() & found["together"].keys())
            if not seeds:
                continue
            alone, together = ([found[v][seed][key] for seed in seeds] for v in (task, "together"))
            gain = [b - a for a, b in zip(alone, together, strict=True)]
            row: dict[str, Any] = {"name": f"{task} {name}", "labels": f"{share:.1%}"}
            for title, values in (("alone", alone), ("together", together), ("gain", gain)):
                row |= {title: with_spread(values, "+" if title == "gain" else ""), f"each_{title}": values}
            each = [[found[v][seed]["minutes"] for seed in seeds] for v in (task, "together")]
            row["minutes"] = " / ".join(f"{statistics.mean(values):.1f}" for values in each)
            row["each_minutes"] = each
            table.append(row)
    return table


def main(
    overrides: OverridesArgument = None,
    quick: Annotated[bool, quick_option("one seed, two fractions of labels, a tenth of the images")] = False,
    json_file: JsonOption = None,
    data: DataOption = None,
    config: Annotated[Path, typer.Option(help="configuration")] = ROOT / "configs/digits-all-32.yaml",
    images: Annotated[
        int | None, typer.Option(min=1, help="training images per run; default: 10,000, quick: 1,000")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="number of seeds; default: 2, quick: 1")] = None,
    shares: Annotated[
        str | None, typer.Option(help="fractions of labels that are kept; default: 1.0,0.1,0.025, quick: 1.0,0.1")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="number of runs at a time, each on one thread")] = 2,
    samples: Annotated[int, typer.Option(min=100, help="images to generate for CAS and diversity")] = 2_000,
    work: Annotated[Path, typer.Option(help="folder for runs and results")] = ROOT / "runs/multitask",
) -> None:
    """Train every task alone and all together, for every fraction of labels and every seed, and compare."""
    here, work = machine(), work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    images, seeds = images or (1_000 if quick else 10_000), seeds or (1 if quick else 2)
    fractions = [float(share) for share in (shares or ("1.0,0.1" if quick else "1.0,0.1,0.025")).split(",")]
    base = base_settings(data, work, overrides)
    tasks = list(load(config, base).task_settings())
    variants = ["together", *(task for task in ("generation", *DISCRIMINATIVE_TASKS) if task in tasks)]
    runs = [Run(variant, seed, share) for share in fractions for seed in range(seeds) for variant in variants]
    rows = Study(config, base, images, samples, work, parallel).results(runs)
    report(f"Tasks alone and together: {config.name}, {images:,} images per run", here, compared(rows), json_file)


if __name__ == "__main__":
    typer.run(main)
