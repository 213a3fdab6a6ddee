"""Commands that look at a run."""

from pathlib import Path
from typing import Annotated

import typer

from mtgen.cli.common import Device, Json, Run, app, console, say, table, write_json


@app.command(rich_help_panel="Look at a run")
def inspect(run: Run, json_file: Json = None) -> None:
    """Position, images seen, parameter counts and SHA-256 over the parameters of a run's newest checkpoint.

    Example: `mtgen inspect digits-32` - two runs that should be equal have equal digests.
    """
    from mtgen.runs import describe, find_run

    values = describe(find_run(run))
    table(str(run), values)
    write_json(json_file, values)


@app.command(rich_help_panel="Look at a run")
def evaluate(
    run: Run,
    data: Annotated[str | None, typer.Option("--against", help="data set to test on; default: the run's own")] = None,
    n: Annotated[int | None, typer.Option("--n", help="images to generate; default: evaluate.samples")] = None,
    metrics: Annotated[
        str | None, typer.Option(help="names with commas between, such as test/box_ap50,condition/sound; default: all")
    ] = None,
    seed: int = 0,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Every metric in one pass: class accuracy, mask mIoU, box AP, CAS, diversity, ... ; logged to the run's MLflow run too.

    Example: `mtgen evaluate digits-32 --metrics test/box_ap50,condition/sound --json metrics.json`
    """
    from mtgen.progress import stages
    from mtgen.snapshot import evaluate_run

    with stages(console) as progress:
        chosen = None if metrics is None else [name.strip() for name in metrics.split(",") if name.strip()]
        report = evaluate_run(run, data, n, seed, device, progress, chosen)
    table(str(run), dict(report))
    for name, reason in report.skipped.items():
        say(f"left out: {name}: {reason}")
    write_json(json_file, {**report, "skipped": report.skipped})


@app.command(rich_help_panel="Look at a run")
def ui(
    runs: Annotated[Path, typer.Option(help="folder of all runs")] = Path("runs"),
    port: Annotated[int, typer.Option(help="port on this machine; the next free one is taken if it is in use")] = 5000,
) -> None:
    """Open MLflow's own pages over the runs, on loopback only.

    Example: `mtgen ui`, then open the address that it prints.
    """
    from mtgen.ui import serve_ui

    serve_ui(runs, port=port, say=say)
