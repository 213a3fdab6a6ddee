"""Commands that look at this machine, and try it out."""

from pathlib import Path
from typing import Annotated

import typer

from mtgen.cli.common import PREPARE_PANEL, Device, Json, WorkerError, app, console, write_json


@app.command(rich_help_panel=PREPARE_PANEL)
def doctor(
    runs: Annotated[Path, typer.Option(help="folder of all runs")] = Path("runs"),
    json_file: Json = None,
) -> None:
    """What of this machine mtgen needs, and how to mend it.

    What is there, what it means, and the command that mends it. Trains nothing, takes seconds.

    Example: `mtgen doctor`

    Exit status 1 where a problem keeps runs from training.
    """
    from rich.table import Table

    from mtgen.preflight.doctor import PROBLEM, STATUS_COLORS, SystemUnderTest, rows, run_checks

    with console.status("looking at this machine ..."):
        found = run_checks(SystemUnderTest(runs))
    shown = Table.grid(padding=(0, 2))
    shown.add_column()
    shown.add_column()
    shown.add_column(overflow="fold")
    for one in found:
        words = [
            one.found,
            *([f"-> {one.means}"] if one.means else []),
            *([f"mend it: {one.remedy}"] if one.remedy else []),
        ]
        shown.add_row(f"[{STATUS_COLORS[one.state]}]{one.state}[/]", one.check, "\n".join(words).replace("[", r"\["))
    console.print(shown)
    write_json(json_file, rows(found))
    if broken := [one.check for one in found if one.state == PROBLEM]:
        raise WorkerError(f"nothing trains here until this is mended: {', '.join(broken)}", 1)


@app.command(rich_help_panel=PREPARE_PANEL)
def smoke(
    device: Device = "auto",
    keep: Annotated[
        Path | None, typer.Option(help="folder for what the test leaves behind; default: a temporary one")
    ] = None,
    json_file: Json = None,
) -> None:
    """Try everything on this machine in under three minutes.

    Train in each precision, resume bit for bit, sample, track.

    Example: `mtgen smoke --device cpu`
    """
    from mtgen.preflight.smoke_test import smoke_test

    rows = smoke_test(device, keep, console)
    write_json(json_file, rows)
    if any(row["result"] == "failed" for row in rows):
        raise WorkerError("the smoke test found something broken: see the table", 1)
