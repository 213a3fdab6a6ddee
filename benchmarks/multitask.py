"""Does sharing pay? Each task alone compared with all tasks together, for the labels that users have.

Both see the same number of images. A discriminative task alone is plain supervised training on the same labels: no
generator, no adversarial logit, and no conditions. Generation alone is class-conditional, as it is together. "Together"
trains all tasks of the configuration; everything else (networks, learning rates, augmentation, batches, order) is the
same. With `--without` all tasks are also trained without a mechanism of sharing, to see what it gives.

Labels are withheld independently for classes, masks and boxes. Conditioning on captions and sounds is switched off,
since they reveal the class of every image. Masks and boxes of digits reveal the class too, so each kind of label helps
the other tasks; that is part of the benefit of sharing and counts as such.
"""

import statistics
from pathlib import Path
from typing import Annotated, Any

import typer
from common import ROOT, DataOption, JsonOption, OverridesArgument, machine, quick_option, report
from study_runner import CASES, DISCRIMINATIVE_TASKS, MECHANISMS, METRICS, Run, Study, base_settings, with_spread

from mtgen.config import load
from mtgen.errors import ConfigError
from mtgen.registry import suggest


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare alone and together; one row per case, metric and mechanism that was left out.

    A row has the means with their standard deviations, the gain, and the minutes of both; `each_...` are lists with
    the values of every seed.
    """
    table = []
    for case in dict.fromkeys(row["case"] for row in rows):
        for key, (task, name) in METRICS.items():
            for policy in dict.fromkeys(row["policy"] for row in rows if row["variant"] == "together"):
                alone_rows = [r for r in rows if r["case"] == case and r["variant"] == task]
                together_rows = [
                    r for r in rows if r["case"] == case and r["variant"] == "together" and r["policy"] == policy
                ]
                found = [{r["seed"]: r for r in some if key in r} for some in (alone_rows, together_rows)]
                seeds = sorted(found[0].keys() & found[1].keys())
                if not seeds:
                    continue
                alone, together = ([some[seed][key] for seed in seeds] for some in found)
                gain = [b - a for a, b in zip(alone, together, strict=True)]
                row: dict[str, Any] = {"name": f"{task} {name}", "labels": case}
                if policy:
                    row["without"] = policy
                for title, values in (("alone", alone), ("together", together), ("gain", gain)):
                    row |= {title: with_spread(values, "+" if title == "gain" else ""), f"each_{title}": values}
                each = [[some[seed]["minutes"] for seed in seeds] for some in found]
                row["minutes"] = " / ".join(f"{statistics.mean(values):.1f}" for values in each)
                row["each_minutes"] = each
                table.append(row)
    return table


def chosen(names: str | None, known: dict[str, Any], default: list[str], option: str) -> list[str]:
    """The names in a comma-separated option.

    Raises:
        ConfigError: one of them is not known.
    """
    found = default if names is None else [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in found if name not in known]:
        raise ConfigError(f"{option} {unknown[0]}: {suggest(unknown[0], list(known))}")
    return found


def main(
    overrides: OverridesArgument = None,
    quick: Annotated[bool, quick_option("one seed, two cases, a fortieth of the images")] = False,
    json_file: JsonOption = None,
    data: DataOption = None,
    config: Annotated[Path, typer.Option(help="configuration")] = ROOT / "configs/digits-all-32.yaml",
    images: Annotated[
        int | None, typer.Option(min=1, help="training images per run; default: 40,000, quick: 1,000")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="number of seeds; default: 3, quick: 1")] = None,
    cases: Annotated[
        str | None,
        typer.Option(help=f"which labels there are: {', '.join(CASES)}; default: all of them, quick: the first two"),
    ] = None,
    without: Annotated[
        str | None,
        typer.Option(help=f"mechanisms to switch off in turn, in all tasks together: {', '.join(MECHANISMS)}"),
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="number of runs at a time, each on one thread")] = 2,
    samples: Annotated[int, typer.Option(min=100, help="images to generate for CAS and diversity")] = 2_000,
    work: Annotated[Path, typer.Option(help="folder for runs and results")] = ROOT / "runs/multitask",
) -> None:
    """Train every task alone and all together, for every case and every seed, and compare."""
    here, work = machine(), work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    images, seeds = images or (1_000 if quick else 40_000), seeds or (1 if quick else 3)
    labels = chosen(cases, CASES, list(CASES)[: 2 if quick else None], "--cases")
    off = chosen(without, MECHANISMS, [], "--without")
    base = base_settings(data, work, overrides)
    tasks = list(load(config, base).task_settings())
    variants = ["together", *(task for task in ("generation", *DISCRIMINATIVE_TASKS) if task in tasks)]
    runs = [Run(variant, seed, case) for case in labels for seed in range(seeds) for variant in variants]
    runs += [
        Run("together", seed, case, policy=name, settings=MECHANISMS[name])
        for case in labels
        for seed in range(seeds)
        for name in off
    ]
    rows = Study(config, base, images, samples, work, parallel).results(runs)
    report(f"Tasks alone and together: {config.name}, {images:,} images per run", here, compared(rows), json_file)


if __name__ == "__main__":
    typer.run(main)
