"""Commands that inspect a run: progress, checkpoints, metrics, reports."""

from pathlib import Path
from typing import Annotated

import typer

from mtgen.cli.common import (
    INSPECT_PANEL,
    CheckpointOption,
    Device,
    Json,
    RunArgument,
    SeedOption,
    WorkerError,
    app,
    console,
    reject_commas,
    say,
    table,
    write_json,
)
from mtgen.cli.renames import CheckpointsGroup

checkpoints_app = typer.Typer(
    cls=CheckpointsGroup, no_args_is_help=True, help="List, verify, prune or export a run's checkpoints."
)
app.add_typer(checkpoints_app, name="checkpoints", rich_help_panel=INSPECT_PANEL)


@app.command(rich_help_panel=INSPECT_PANEL)
def inspect(run: RunArgument, json_file: Json = None) -> None:
    """Show a run's progress, parameter counts and digests.

    They are of the newest checkpoint; a digest is the SHA-256 of all parameters, and equal runs have equal digests.

    Example: `mtgen inspect digits-32`
    """
    from mtgen.models.loading import describe, find_run

    values = describe(find_run(run))
    table(str(run), values)
    write_json(json_file, values)


def _show_checkpoints(folder: Path, verified: bool, json_file: Path | None) -> None:
    """Print a run's checkpoints, and write them as JSON.

    Raises:
        WorkerError: one is damaged.
    """
    from dataclasses import asdict

    from rich.table import Table

    from mtgen.checkpointing.checkpoint import list_checkpoints
    from mtgen.models.loading import retention_of

    entries = list_checkpoints(folder / "checkpoints", verified, retention_of(folder))
    shown = Table("images", "MB", "checksums" if verified else "sizes", "kept as")
    for entry in entries:
        state = "damaged" if entry.problem else "good"
        shown.add_row(f"{entry.images:,}", f"{entry.bytes / 1e6:,.1f}", state, "; ".join(entry.reasons))
    console.print(shown)
    write_json(json_file, [{"images": e.images, **asdict(e), "folder": str(e.folder)} for e in entries])
    if problems := [entry.problem for entry in entries if entry.problem]:
        raise WorkerError("\n".join(problems), 4)


@checkpoints_app.command("list")
def checkpoints_list(run: RunArgument, json_file: Json = None) -> None:
    """List a run's checkpoints with their sizes, and why each is kept.

    Example: `mtgen checkpoints list digits-32`

    Exit status 4 if one is damaged, as far as sizes tell.
    """
    from mtgen.models.loading import find_run

    _show_checkpoints(find_run(run), False, json_file)


@checkpoints_app.command("verify")
def checkpoints_verify(run: RunArgument, json_file: Json = None) -> None:
    """Compare every file of a run's checkpoints with its checksum.

    Example: `mtgen checkpoints verify digits-32`

    Exit status 4 if one is damaged.
    """
    from mtgen.models.loading import find_run

    _show_checkpoints(find_run(run), True, json_file)


@checkpoints_app.command("prune")
def checkpoints_prune(
    run: RunArgument,
    keep_last: Annotated[
        int | None,
        typer.Option(
            "--keep-last", min=1, metavar="N", help="newest good checkpoints to keep; default: checkpoint.keep"
        ),
    ] = None,
    json_file: Json = None,
) -> None:
    """Remove old checkpoints of a run.

    Keeps the newest good ones and those that checkpoint.keep_every and checkpoint.best keep, then lists what is left.

    Example: `mtgen checkpoints prune digits-32 --keep-last 1`
    """
    from mtgen.checkpointing.checkpoint import prune
    from mtgen.launchers.driver import run_lock
    from mtgen.models.loading import find_run, retention_of

    folder = find_run(run)
    with run_lock(folder):  # a run that trains prunes its own
        for entry in prune(folder / "checkpoints", retention_of(folder, keep_last)):
            say(f"removed: {entry.folder}")
    _show_checkpoints(folder, False, json_file)


@checkpoints_app.command("export")
def checkpoints_export(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="safetensors file to write")],
    which: CheckpointOption = None,
) -> None:
    """Write the averaged weights of a checkpoint to one safetensors file, which every command accepts as a model.

    Example: `mtgen checkpoints export digits-32 --out digits.safetensors`
    """
    from mtgen.checkpointing.averaged_weights import export_weights
    from mtgen.models.loading import find_run, select_checkpoint

    found = select_checkpoint(find_run(run), which)
    export_weights(found, out)
    say(f"wrote {out}: averaged weights at {found.images:,} images")


@app.command(rich_help_panel=INSPECT_PANEL)
def evaluate(
    run: RunArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[evaluate.KEY=VALUE]...",
            help="settings that override the run's, such as evaluate.extractor.kind=inception",
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="FOLDER|URL", help="data set to test on; default: the run's own")
    ] = None,
    num_images: Annotated[
        int | None,
        typer.Option("--num-images", "-n", min=1, help="number of images to generate; default: evaluate.samples"),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metrics",
            metavar="NAME",
            callback=reject_commas,
            help="metric to compute, such as test/box_ap50; repeatable; default: all",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="number of processes, placed by Ray; 1: this process")
    ] = 1,
    seed: SeedOption = 0,
    checkpoint: CheckpointOption = None,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Compute every metric of a run in one pass.

    Accuracy, mIoU, AP, diversity and others. Also logs them to the run's MLflow run. The same command resumes an
    evaluation that was interrupted.

    Example: `mtgen evaluate digits-32 --metrics test/mask_miou --metrics generated/cas --json metrics.json`
    """
    from mtgen.evaluation.run import EvaluationOptions, evaluate_run
    from mtgen.launchers.evaluation_workers import evaluate_on_ray
    from mtgen.report import refresh_report
    from mtgen.tracking.progress_bar import stages

    with stages(console) as progress:
        chosen = tuple(metrics) if metrics else None
        options = EvaluationOptions(data, num_images, seed, device, chosen, checkpoint, tuple(overrides or ()), workers)
        report = evaluate_run(run, options, progress=progress, worker_pool=evaluate_on_ray, publish=refresh_report)
    table(str(run), dict(report))
    if report.resumed:
        say(f"resumed an interrupted evaluation: {report.resumed:,} images had been processed before")
    for reason in dict.fromkeys(report.skipped.values()):
        say(f"skipped, since {reason}: {', '.join(name for name, own in report.skipped.items() if own == reason)}")
    write_json(json_file, {**report, "skipped": report.skipped})


@app.command(rich_help_panel=INSPECT_PANEL)
def conflicts(
    run: RunArgument,
    last: Annotated[int, typer.Option("--last", min=1, metavar="N", help="average over the last N logged rows")] = 10,
    json_file: Json = None,
) -> None:
    """Show where the tasks' gradients agree and conflict.

    Prints the gradients' norms and weights, and how much each task helps or hurts the others. Works during training
    too.

    Example: `mtgen conflicts digits-32`
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from mtgen.balancing.conflicts import TABLE_NOTE, load_gate_histories, table

    values = {}
    for gate, meeting in load_gate_histories(run).items():
        columns, rows = table(meeting, last)
        shown = Table(
            title=f"Gate at {gate}, {meeting.images[-1]:,} images",
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=0,
            pad_edge=False,
        )
        for number, column in enumerate(columns):
            shown.add_column(
                column, justify="right" if number else "left", no_wrap=not column.startswith("by"), min_width=4
            )
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
        effects = {f"{b} on {a}": meeting.effect(b, a, last) for a in meeting.tasks for b in meeting.tasks if a != b}
        values[gate] = {"images": meeting.images[-1], "shares": meeting.gradient_fractions(last), "effects": effects}
    say(TABLE_NOTE)
    write_json(json_file, values)


@app.command(rich_help_panel=INSPECT_PANEL)
def ui(
    runs: Annotated[Path, typer.Option(help="folder of all runs")] = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="port; the next free one if it is in use")] = 5000,
) -> None:
    """Serve MLflow's pages about the runs, on loopback only.

    Example: `mtgen ui`, then open the address that it prints.
    """
    from mtgen.tracking.mlflow_ui import serve_ui

    serve_ui(runs, port=port, say=say)


@app.command(rich_help_panel=INSPECT_PANEL)
def report(
    run: RunArgument,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", metavar="RUN", help="run to compare the configuration with")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="page to write; default: report.html in the run's folder"),
    ] = None,
) -> None:
    """Write one self-contained page about a run.

    It shows sample grids over time, curves, task conflicts, metrics, data, cost, faults and the configuration.
    Training updates it at each snapshot.

    Example: `mtgen report digits-32 --baseline digits-all-32`
    """
    from mtgen.report import write_report

    say(f"wrote {write_report(run, baseline, out)}")


@app.command(rich_help_panel=INSPECT_PANEL)
def compare(
    runs: Annotated[list[Path], typer.Argument(help="two or more runs: folders, or names under runs/")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="page to write")] = Path("compare.html"),
) -> None:
    """Write one page that compares several runs.

    It shows curves, samples at equal numbers of images, metrics with the best marked, and what differs in the
    configurations.

    Example: `mtgen compare digits-32 digits-all-32 --out compare.html`
    """
    from mtgen.report import write_comparison

    say(f"wrote {write_comparison(runs, out)}")
