"""Commands that look at a run."""

from pathlib import Path
from typing import Annotated

import typer

from mtgen.cli.common import (
    INSPECT_PANEL,
    CheckpointOption,
    Device,
    Json,
    RunArgument,
    WorkerError,
    app,
    console,
    say,
    table,
    write_json,
)


@app.command(rich_help_panel=INSPECT_PANEL)
def inspect(run: RunArgument, json_file: Json = None) -> None:
    """Images seen, parameter counts and digest of a run.

    Of its newest checkpoint; the digest is a SHA-256 over the parameters.

    Example: `mtgen inspect digits-32` - two runs that should be equal have equal digests.
    """
    from mtgen.models.loading import describe, find_run

    values = describe(find_run(run))
    table(str(run), values)
    write_json(json_file, values)


@app.command(rich_help_panel=INSPECT_PANEL)
def checkpoints(
    run: RunArgument,
    verify: Annotated[bool, typer.Option("--verify", help="compare every file with its checksum")] = False,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep",
            min=1,
            metavar="N",
            help="remove all but the newest N, of those that are whole, and what else is kept",
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="FILE", help="write the averaged weights alone, as safetensors")
    ] = None,
    which: CheckpointOption = None,
    json_file: Json = None,
) -> None:
    """List, verify and prune a run's checkpoints; take weights out.

    The list says why each is kept. Exit status 4 where one is damaged.

    Example: `mtgen checkpoints digits-32 --verify --weights digits.safetensors`
    """
    from dataclasses import asdict

    from rich.table import Table

    from mtgen.checkpointing import checkpoint
    from mtgen.checkpointing.averaged_weights import export_weights
    from mtgen.launchers.driver import run_lock
    from mtgen.models.loading import find_run, retention_of, select_checkpoint

    folder = find_run(run)
    root = folder / "checkpoints"
    if keep is not None:
        with run_lock(folder):  # a training run prunes by itself
            for entry in checkpoint.prune(root, retention_of(folder, keep)):
                say(f"removed: {entry.folder}")
    if weights is not None:
        found = select_checkpoint(folder, which)
        export_weights(found, weights)
        say(f"{weights}: averaged weights at {found.images:,} images")
    entries = checkpoint.list_checkpoints(root, verify, retention_of(folder))
    shown = Table("images", "MB", "verified" if verify else "sizes", "kept, as")
    for entry in entries:
        shown.add_row(
            f"{entry.images:,}",
            f"{entry.bytes / 1e6:,.1f}",
            "damaged" if entry.problem else "good",
            "; ".join(entry.reasons),
        )
    console.print(shown)
    write_json(json_file, [{"images": e.images, **asdict(e), "folder": str(e.folder)} for e in entries])
    if problems := [entry.problem for entry in entries if entry.problem]:
        raise WorkerError("\n".join(problems), 4)


@app.command(rich_help_panel=INSPECT_PANEL)
def evaluate(
    run: RunArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[evaluate.KEY=VALUE]...", help="settings over the run's, such as evaluate.extractor.kind=inception"
        ),
    ] = None,
    data: Annotated[str | None, typer.Option("--against", help="data set to test on; default: the run's own")] = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help="images to generate; default: evaluate.samples")] = None,
    metrics: Annotated[
        str | None, typer.Option(help="names with commas between, such as test/box_ap50,condition/sound; default: all")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="processes that share the work, placed by Ray; 1: this process alone")
    ] = 1,
    seed: int = 0,
    checkpoint: CheckpointOption = None,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Every metric in one pass: accuracy, mIoU, AP, diversity, ...

    The numbers are logged to the run's MLflow run too.

    One that is interrupted goes on where it was when the same command is given again.

    Example: `mtgen evaluate digits-32 --metrics test/box_ap50,condition/sound --json metrics.json`
    """
    from mtgen.evaluation.snapshots import evaluate_run
    from mtgen.launchers.evaluation_workers import evaluate_on_ray
    from mtgen.report import refresh_report
    from mtgen.tracking.progress_bar import stages

    with stages(console) as progress:
        chosen = None if metrics is None else [name.strip() for name in metrics.split(",") if name.strip()]
        report = evaluate_run(
            run,
            data,
            n,
            seed,
            device,
            progress,
            chosen,
            checkpoint,
            overrides,
            workers,
            evaluate_on_ray,
            refresh_report,
        )
    table(str(run), dict(report))
    if report.resumed:
        say(f"went on with an evaluation that was interrupted: {report.resumed:,} images were taken in before")
    for reason in dict.fromkeys(report.skipped.values()):
        say(f"left out, since {reason}: {', '.join(name for name, own in report.skipped.items() if own == reason)}")
    write_json(json_file, {**report, "skipped": report.skipped})


@app.command(rich_help_panel=INSPECT_PANEL)
def tasks(
    run: RunArgument,
    last: Annotated[int, typer.Option(min=1, help="rows of the run's log that are averaged, from its end")] = 10,
    json_file: Json = None,
) -> None:
    """Who hurts whom: where the tasks' gradients agree and conflict.

    Norms and weights of the gradients, and what each adds to or takes from the others' progress.

    Example: `mtgen tasks digits-32` - also while it trains.
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
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="port on this machine; the next free one is taken if it is in use")
    ] = 5000,
) -> None:
    """Open MLflow's own pages over the runs, on loopback only.

    Example: `mtgen ui`, then open the address that it prints.
    """
    from mtgen.tracking.mlflow_ui import serve_ui

    serve_ui(runs, port=port, say=say)


@app.command(rich_help_panel=INSPECT_PANEL)
def report(
    run: RunArgument,
    against: Annotated[
        Path | None, typer.Option(metavar="RUN", help="another run, to show what differs in the configuration")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="the page; default: report.html in the run's folder")
    ] = None,
) -> None:
    """One self-contained page about a run.

    Pictures over time, curves, task conflict, metrics, data, cost, faults, configuration.

    Training keeps it current by itself, at each snapshot. Example: `mtgen report digits-32 --against digits-all-32`
    """
    from mtgen.report import write_report

    say(f"wrote {write_report(run, against, out)}")


@app.command(rich_help_panel=INSPECT_PANEL)
def compare(
    runs: Annotated[list[Path], typer.Argument(help="two runs or more: folders, or names under runs/")],
    out: Annotated[Path, typer.Option("--out", "-o", help="the page")] = Path("compare.html"),
) -> None:
    """One page with several runs side by side.

    Curves, samples at equal images, metrics with the best marked, what differs in the configurations.

    Example: `mtgen compare digits-32 digits-all-32 --out compare.html`
    """
    from mtgen.report import write_comparison

    say(f"wrote {write_comparison(runs, out)}")
