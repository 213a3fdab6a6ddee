"""Sharing pays, or does not: each task alone against all of them together, at equal numbers of images seen, with all and with few labels.

"Alone" is as pure as it gets. A reading task alone is supervised training: no generator, no logit, every image is read and no condition is
encoded. Generation alone has no task but its own, and is asked for classes as together. Together are all tasks of the configuration, and
everything else (networks, rates, augmentation, batch, order of the images) is the same.

What is shared is what the labels say: the classes, masks and boxes of so many of the samples are known, drawn independently of each other.
Captions and sounds are not asked for: they would tell the class of every image, however few classes are known. Masks and boxes of digits
tell the class too, so each kind of labels helps the others; that is a part of what sharing brings, and counted as such.
"""

import statistics
from pathlib import Path
from typing import Annotated, Any

import typer
from common import ROOT, machine, report
from study_runner import NUMBERS, READING, Run, Study, base_settings, with_spread

from mtgen.config import load


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for every share and number: alone, together, the difference seed by seed, and minutes of both; `each_...` hold every seed's."""
    table = []
    for share in sorted({row["share"] for row in rows}, reverse=True):
        for key, (task, name) in NUMBERS.items():
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
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings over the file's, for all runs")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="one seed, all labels and a tenth of them, a tenth of the images")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the numbers to this file")] = None,
    data: Annotated[
        Path | None, typer.Option(help="data set; default: ../shared/data/digits, else drawn digits")
    ] = None,
    config: Annotated[Path, typer.Option(help="what is trained")] = ROOT / "configs/digits-all-32.yaml",
    images: Annotated[
        int | None, typer.Option(min=1, help="that each run sees; default: 10,000, quick a tenth")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="runs of each kind; default: 2, quick 1")] = None,
    shares: Annotated[
        str | None, typer.Option(help="shares of labels that are known; default: 1.0,0.1,0.025, quick 1.0,0.1")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="runs at a time, a thread each")] = 2,
    samples: Annotated[int, typer.Option(min=100, help="images to generate for CAS and diversity")] = 2_000,
    work: Annotated[Path, typer.Option(help="folder in which results and runs are kept")] = ROOT / "runs/multitask",
) -> None:
    """Train every task alone and all together, for every share of labels and every seed, and compare."""
    here, work = machine(), work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    images, seeds = images or (1_000 if quick else 10_000), seeds or (1 if quick else 2)
    known = [float(share) for share in (shares or ("1.0,0.1" if quick else "1.0,0.1,0.025")).split(",")]
    base = base_settings(data, work, overrides)
    tasks = list(load(config, base).task_settings())
    variants = ["together", *(task for task in ("generation", *READING) if task in tasks)]
    runs = [Run(variant, seed, share) for share in known for seed in range(seeds) for variant in variants]
    rows = Study(config, base, images, samples, work, parallel).results(runs)
    report(f"Alone and together: {config.name}, {images:,} images each", here, compared(rows), json_file)


if __name__ == "__main__":
    typer.run(main)
