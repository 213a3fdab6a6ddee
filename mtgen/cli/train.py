"""The command that trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mtgen.cli.common import (
    TRAIN_PANEL,
    ConfigFile,
    Json,
    Overrides,
    WorkerError,
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
    resume: Annotated[
        bool,
        typer.Option("--resume", help="insist on a checkpoint to go on from (without it, one is used if it is there)"),
    ] = False,
    dry: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="everything up to the first step: data, label counts, parameters, memory and time; writes nothing",
        ),
    ] = False,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast-dev-run",
            help="two steps with numbers, pictures, metrics and a checkpoint each, in a folder that is removed",
        ),
    ] = False,
    samples: Annotated[
        int | None,
        typer.Option(
            "--overfit", min=1, metavar="N", help="learn the first N samples by heart, and test on the very same"
        ),
    ] = None,
    json_file: Json = None,
) -> None:
    """Train a run, or go on with the run of that name.

    Examples: `mtgen train configs/digits-32.yaml data.path=data_shards/digits workers=2`, `mtgen train digits-32 --dry-run`,
    `mtgen train digits-32 --fast-dev-run`, `mtgen train digits-32 --overfit 32 train.images=20000`

    Ctrl-C writes a checkpoint and ends; the same command goes on from there.
    """
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
    outcome = run(settings, json_file, resume)
    if outcome.status != "finished":
        again = shell_command("mtgen train", config, *(overrides or []))
        written = ", checkpoint written" if outcome.images else ""
        how = (
            "raise train.max_minutes" if outcome.status == "out of time" else again
        )  # it counts the minutes of all starts
        say(f"{outcome.status} at {outcome.images:,} images{written}. To go on: {how}")


def run(
    settings: Any, json_file: Path | None = None, resume: bool = False, asked: Callable[[], bool] = lambda: False
) -> Any:
    """Train, write and say how training ended; `asked` as in `mtgen.launchers.driver.launch`."""
    from dataclasses import asdict

    outcome = run_with_progress(settings, resume, asked)
    write_json(json_file, asdict(outcome))
    if outcome.status == "finished":
        say(
            f"finished: {outcome.images:,} images{f' ({outcome.message})' if outcome.message else ''}. "
            f"Next: {shell_command('mtgen evaluate', settings.folder)}; {shell_command('mtgen sample', settings.folder)}; mtgen ui"
        )
    return outcome


def run_with_progress(settings: Any, resume: bool, asked: Callable[[], bool] = lambda: False) -> Any:
    """Train with a progress bar; how training ended, unless it failed: that is an error."""
    from mtgen.launchers.driver import launch
    from mtgen.tracking.progress_bar import TrainingProgress

    def watch(folder: Path, start: int, alive: Callable[[], bool]) -> None:
        with TrainingProgress(settings.train.images, settings.name, console) as progress:
            progress.status("starting")
            progress.follow(folder, start, alive)

    outcome = launch(settings, watch=watch, say=say, resume=resume, asked=asked)
    if outcome.status == "failed":
        raise WorkerError(outcome.message, outcome.exit_status)
    return outcome


def _show_dry_run(settings: Any, json_file: Path | None) -> None:
    """What the run would begin with, as a table."""
    from mtgen.config import resolve_device
    from mtgen.preflight.dry_run import dry_run

    found = dry_run(settings)
    hours = found.hours(settings.train.images)
    values = {
        "samples": f"{found.train:,} to train on, {found.test:,} to test on",
        **{f"labelled for {key}": f"{number:,}" for key, number in found.labelled.items()},
        "parameters": f"{found.cost.total:,}, of them {found.cost.generator:,} in the generator",
        "GFLOPs an image and step": f"{found.cost.step / 1e9:.2f}",
        "MiB a worker: parameters, gradients, optimizer": f"{found.state / 2**20:,.0f}",
        "MiB a worker: activations (estimate)": f"{found.activations / 2**20:,.0f}",
        "images/s here (estimate)": f"{found.images_per_second:,.1f}"
        if found.images_per_second
        else "too large to be timed here: mtgen plan",
        f"hours for {settings.train.images:,} images (estimate)": f"{hours:.2g}" if hours else "-",
        "runs on": f"{settings.max_workers} x {resolve_device(settings)}, {settings.precision}, ZeRO-{settings.zero_stage}",
        "would write": str(settings.folder),
    }
    table(f"dry run of {settings.name}", values)
    numbers = {
        "train": found.train,
        "test": found.test,
        "labelled": found.labelled,
        "parameters": found.cost.parameters,
    }
    numbers |= {"step": found.cost.step, "state": found.state, "activations": found.activations}
    write_json(json_file, {**numbers, "images_per_second": found.images_per_second, "hours": hours})


def _fast_dev_run(settings: Any, json_file: Path | None) -> None:
    """Two steps of everything beside the real runs, in a folder that is gone afterwards."""
    import tempfile
    from dataclasses import asdict

    from mtgen.preflight.dry_run import fast_dev_run

    runs = Path(settings.runs)
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fast-dev-run-", dir=runs) as folder:  # beside the runs: every node sees it
        tried = fast_dev_run(settings, Path(folder))
        outcome = run_with_progress(tried, resume=False)
        pictures = len(list(tried.folder.glob("samples/0*.png")))
        kept = len(list(tried.folder.glob("checkpoints/0*")))
    write_json(json_file, {**asdict(outcome), "pictures": pictures, "checkpoints": kept})
    say(
        f"fast dev run {outcome.status}: {outcome.images} images in 2 steps, {kept} checkpoints, {pictures} pictures; nothing of it is left"
    )
