"""The command that trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mtgen.cli.common import ConfigFile, Json, Overrides, UserErrorFrom, app, console, load_config, say, write_json


@app.command(rich_help_panel="Train")
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="insist on a checkpoint to go on from (without it, one is used if it is there)")
    ] = False,
    json_file: Json = None,
) -> None:
    """Train a run, or go on with the run of that name.

    Example: `mtgen train configs/digits-32.yaml data.path=data_shards/digits workers=2`

    Ctrl-C writes a checkpoint and ends; the same command goes on from there.
    """
    settings = load_config(config, overrides)
    outcome = run(settings, json_file, resume)
    if outcome.status != "finished":
        again = f"mtgen train {config} {' '.join(overrides or [])}".strip()
        written = ", checkpoint written" if outcome.images else ""
        say(f"{outcome.status} at {outcome.images:,} images{written}. To go on: {again}")


def run(settings: Any, json_file: Path | None = None, resume: bool = False) -> Any:
    """Train with a progress bar; how training ended, unless it failed: that is an error."""
    from dataclasses import asdict

    from mtgen.orchestrate.driver import launch
    from mtgen.progress import Progress

    def watch(folder: Path, start: int, alive: Callable[[], bool]) -> None:
        with Progress(settings.train.images, settings.name, console) as progress:
            progress.status("starting")
            progress.follow(folder, start, alive)

    outcome = launch(settings, watch=watch, say=say, resume=resume)
    write_json(json_file, asdict(outcome))
    if outcome.status == "failed":
        raise UserErrorFrom(outcome.message, outcome.exit_status)
    if outcome.status == "finished":
        say(
            f"finished: {outcome.images:,} images{f' ({outcome.message})' if outcome.message else ''}. "
            f"Next: mtgen evaluate {settings.folder}; mtgen sample {settings.folder}; mtgen ui"
        )
    return outcome
