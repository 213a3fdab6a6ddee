"""The command that trains."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mtgen.cli.common import (
    TRAIN_PANEL,
    ConfigFile,
    Json,
    Overrides,
    app,
    console,
    load_config,
    say,
    table,
    write_json,
)
from mtgen.utils.shell import shell_command


@app.command(rich_help_panel=TRAIN_PANEL)
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    new: Annotated[
        bool, typer.Option("--new", help="fail if the run exists; default: resume it from its newest checkpoint")
    ] = False,
    require_checkpoint: Annotated[
        bool,
        typer.Option("--require-checkpoint", help="fail if the run has no checkpoint; default: start a new run"),
    ] = False,
    dry: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="stop before the first step and print data, label counts, parameters, memory and time; write nothing",
        ),
    ] = False,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast-dev-run",
            help="train two steps, each with metrics, sample grids and a checkpoint, in a temporary folder",
        ),
    ] = False,
    samples: Annotated[
        int | None,
        typer.Option("--overfit", min=1, metavar="N", help="overfit the first N samples and validate on the same ones"),
    ] = None,
    json_file: Json = None,
) -> None:
    """Train a run, or resume the run of that name.

    Examples: `mtgen train configs/digits-32.yaml data.path=data_shards/digits workers=2`,
    `mtgen train digits-32 --dry-run`, `mtgen train digits-32 --fast-dev-run`,
    `mtgen train digits-32 --overfit 32 train.images=20000`

    Ctrl-C writes a checkpoint and stops; the same command resumes.
    """
    if new and require_checkpoint:
        raise typer.BadParameter("--new and --require-checkpoint exclude each other; give one of them")
    settings = load_config(config, overrides)
    if samples is not None:
        from mtgen.preflight.dry_run import overfit

        settings = overfit(settings, samples)
    if dry:
        _show_dry_run(settings, json_file)
        return
    if fast:
        _fast_dev_run(settings, json_file)
        return
    from mtgen.launchers.driver import finished_message, train_with_progress

    outcome = train_with_progress(settings, console, say, new=new, require_checkpoint=require_checkpoint)
    write_json(json_file, asdict(outcome))
    if outcome.status == "finished":
        say(finished_message(settings, outcome))
    else:
        if os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):  # a submitted job: its file is in the job's own folder
            again = shell_command("mtgen submit", Path(settings.folder).absolute() / "config.yaml")
        else:
            again = shell_command("mtgen train", config, *(overrides or []))
        written = ", checkpoint written" if outcome.images else ""
        # train.max_minutes counts the minutes of all starts
        how = "raise train.max_minutes" if outcome.status == "out of time" else again
        say(f"{outcome.status} at {outcome.images:,} images{written}. To resume: {how}")


def _show_dry_run(settings: Any, json_file: Path | None) -> None:
    """Print what the run would start with, as a table."""
    from mtgen.config import decide_here
    from mtgen.preflight.dry_run import dry_run

    settings, device = decide_here(settings)
    found = dry_run(settings)
    hours = found.hours(settings.train.images)
    values = {
        "samples": f"{found.train:,} for training, {found.validation:,} for validation, "
        f"{'none' if found.test is None else f'{found.test:,}'} for testing",
        **{f"labels for {key}": f"{number:,}" for key, number in found.labelled.items()},
        "parameters": f"{found.cost.total:,}, {found.cost.generator:,} of them in the generator",
        "GFLOPs per image and step": f"{found.cost.step / 1e9:.2f}",
        "MiB per worker: parameters, gradients, optimizer": f"{found.state / 2**20:,.0f}",
        "MiB per worker: activations (estimate)": f"{found.activations / 2**20:,.0f}",
        "images/s here (estimate)": f"{found.images_per_second:,.1f}"
        if found.images_per_second
        else "too large to time here; see mtgen plan",
        f"hours for {settings.train.images:,} images (estimate)": f"{hours:.2g}" if hours else "-",
        "workers": f"{settings.max_workers} x {device}",
        "precision": f"{settings.precision}, ZeRO-{settings.zero_stage}",
        "would write": str(settings.folder),
    }
    table(f"dry run of {settings.name}", values)
    numbers: dict[str, Any] = {
        "train": found.train,
        "validation": found.validation,
        "test": found.test,
        "labelled": found.labelled,
        "parameters": found.cost.parameters,
    }
    numbers |= {"step": found.cost.step, "state": found.state, "activations": found.activations}
    write_json(json_file, {**numbers, "images_per_second": found.images_per_second, "hours": hours})


def _fast_dev_run(settings: Any, json_file: Path | None) -> None:
    """Train two steps with everything in a temporary folder next to the real runs."""
    import tempfile

    from mtgen.launchers.driver import train_with_progress
    from mtgen.preflight.dry_run import fast_dev_run

    runs = Path(settings.runs)
    runs.mkdir(parents=True, exist_ok=True)
    # next to the runs, where every node sees it
    with tempfile.TemporaryDirectory(prefix="fast-dev-run-", dir=runs) as folder:
        tried = fast_dev_run(settings, Path(folder))
        outcome = train_with_progress(tried, console, say)
        pictures = len(list(tried.folder.glob("samples/0*.png")))
        kept = len(list(tried.folder.glob("checkpoints/0*")))
    write_json(json_file, {**asdict(outcome), "pictures": pictures, "checkpoints": kept})
    say(
        f"fast dev run {outcome.status}: {outcome.images} images in 2 steps, {kept} checkpoints, "
        f"{pictures} sample grids; all files were removed"
    )
