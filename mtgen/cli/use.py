"""Commands that use a trained run: draw, read."""

from pathlib import Path
from typing import Annotated

import typer

from mtgen.cli.common import Device, Json, Run, UserErrorFrom, app, say, write_json


@app.command(rich_help_panel="Use a run")
def sample(
    run: Run,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="class by name or number; may be repeated; default: all in turn")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="how many images")] = 64,
    seed: int = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="PNG file of the grid; default: in the run's folder")] = None,
    shards: Annotated[
        Path | None, typer.Option("--shards", help="write WebDataset shards (image, class, mask) into this folder instead")
    ] = None,
    device: Device = "auto",
) -> None:
    """Draw images with their masks: a grid as PNG, or labelled shards to train on.

    Example: `mtgen sample digits-32 --class seven --n 64`
    """
    from mtgen.inference import sample_run

    say(sample_run(run, classes, n, seed, out, shards, device))


@app.command(rich_help_panel="Use a run")
def predict(
    run: Run,
    images: Annotated[list[Path], typer.Argument(help="PNG, JPEG or WebP files")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="folder for masks and overlay pictures; default: in the run's folder")
    ] = None,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Read images: class, probability and mask of each.

    Example: `mtgen predict digits-32 photo.png --json -`
    """
    from mtgen.inference import predict_run

    rows, problems = predict_run(run, images, out, device)
    for row in rows:
        say(f"{row['file']}: {row.get('class', '-')} ({row.get('probability', 0):.2f})  {row.get('overlay', '')}")
    write_json(json_file, rows)
    if problems:
        raise UserErrorFrom("\n".join(problems), 3)
