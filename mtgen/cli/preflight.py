"""Commands that check and test this system."""

from pathlib import Path
from typing import Annotated

import typer

from mtgen.cli.common import (
    PREPARE_PANEL,
    Device,
    Json,
    Overrides,
    WorkerError,
    app,
    console,
    find_config,
    load_config,
    write_json,
)


@app.command(rich_help_panel=PREPARE_PANEL)
def doctor(
    runs: Annotated[Path, typer.Option(help="folder of all runs")] = Path("runs"),
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="configuration to train: its pretrained backbone is checked too")
    ] = None,
    overrides: Overrides = None,
    json_file: Json = None,
) -> None:
    """Check this system and print a fix for each problem.

    Prints what was found, what it means, and the command that fixes it. Trains nothing and takes seconds.

    Example: `mtgen doctor`

    Exit status 1 if a problem keeps runs from training.
    """
    from rich.table import Table

    from mtgen.preflight.doctor import PROBLEM, STATUS_COLORS, SystemUnderTest, rows, run_checks

    with console.status("checking this system ..."):
        settings = None if config is None else load_config(find_config(config), overrides)
        found = run_checks(SystemUnderTest(runs, config=settings))
    shown = Table.grid(padding=(0, 2))
    shown.add_column()
    shown.add_column()
    shown.add_column(overflow="fold")
    for one in found:
        words = [
            one.found,
            *([f"-> {one.means}"] if one.means else []),
            *([f"fix: {one.remedy}"] if one.remedy else []),
        ]
        shown.add_row(f"[{STATUS_COLORS[one.state]}]{one.state}[/]", one.check, "\n".join(words).replace("[", r"\["))
    console.print(shown)
    write_json(json_file, rows(found))
    if broken := [one.check for one in found if one.state == PROBLEM]:
        raise WorkerError(f"training cannot start until these are fixed: {', '.join(broken)}", 1)


@app.command(rich_help_panel=PREPARE_PANEL)
def smoke(
    device: Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="folder to keep the test's files in; default: a temporary one"
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="start no further check after this time; default: all checks")
    ] = None,
    json_file: Json = None,
) -> None:
    """Run an end-to-end test on this system.

    It takes under three minutes on a CPU, and ten on a GPU, where it also measures speed.
    Trains in each precision, resumes bit for bit, samples and tracks. The JSON file is written after each check.

    Example: `mtgen smoke --device cpu`
    """
    from mtgen.preflight.smoke_test import smoke_test

    to_file = json_file is not None and str(json_file) != "-"
    rows = smoke_test(device, out, console, minutes, lambda rows: write_json(json_file if to_file else None, rows))
    write_json(json_file, rows)
    if any(row["result"] == "failed" for row in rows):
        raise WorkerError("the smoke test failed; see the table", 1)
