"""Commands that use a trained run: draw, read, translate."""

from pathlib import Path
from typing import Annotated

import typer

from mtgen.cli.common import (
    USE_PANEL,
    CheckpointOption,
    Device,
    RunArgument,
    SeedOption,
    WorkerError,
    app,
    console,
    say,
    warn,
)

Images = Annotated[
    list[str], typer.Argument(help="PNG, JPEG or WebP files, folders of them, or data sets (folders or URLs of shards)")
]
MAX_PRINTED_FILES = 20  # files of which each has a line on the terminal


@app.command(rich_help_panel=USE_PANEL)
def sample(
    run: RunArgument,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="class by name or number, A+B for both in one image; default: all in turn"),
    ] = None,
    text: Annotated[list[str] | None, typer.Option("--text", help="caption")] = None,
    sound: Annotated[
        list[Path] | None, typer.Option("--sound", metavar="FILE", help="WAV or FLAC file, of any rate")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", metavar="FILE", help="image that the samples should resemble")
    ] = None,
    layout: Annotated[
        list[Path] | None,
        typer.Option(
            "--layout",
            metavar="FILE",
            help="what should be where: a mask (PNG, values are mask classes, 255 is anything) or boxes (JSON, as samples have it); "
            "one of another size is cut to the run's aspect and resized, a mask to its nearest pixels",
        ),
    ] = None,
    domain: Annotated[
        list[str] | None, typer.Option("--domain", help="data set of the run's mixture, by name or number")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="how many images")] = 64,
    seed: SeedOption = 0,
    truncation: Annotated[float, typer.Option(help="0 to 1: smaller is likelier and less diverse")] = 1.0,
    interpolate: Annotated[
        int | None,
        typer.Option(
            metavar="STEPS", help="rows of so many images from one latent to another, or from one condition to another"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="PNG file of the grid; default: in the run's folder")
    ] = None,
    shards: Annotated[
        Path | None,
        typer.Option("--shards", help="write shards (image, mask, boxes, class, caption) into this folder instead"),
    ] = None,
    checkpoint: CheckpointOption = None,
    device: Device = "auto",
) -> None:
    """Draw images with their masks and boxes, or labeled shards.

    For any combination of conditions: a grid as PNG, or shards to train on.

    What is given several times is asked for in turn.

    Examples: `mtgen sample digits-32 --class seven --n 64`, `mtgen sample digits-all-32 --text "a seven" --layout mask.png`,
    `mtgen sample digits-32 --class one --class seven --interpolate 8`, `mtgen sample digits-32 --n 50000 --shards data_shards/drawn`
    """
    from mtgen.inference import PromptRequest, interpolate_run, sample_run
    from mtgen.tracking.progress_bar import stages

    if shards is not None and out is not None:
        raise typer.BadParameter("--out is a picture, and --shards writes a data set; give one of them")
    request = PromptRequest(classes or (), text or (), sound or (), image or (), layout or (), domain or ())
    if interpolate is not None:
        if shards is not None:
            raise typer.BadParameter("--interpolate draws a picture, and --shards writes a data set; give one of them")
        say(
            interpolate_run(
                run, request, n, interpolate, seed, out=out, truncation=truncation, device=device, checkpoint=checkpoint
            )
        )
        return
    with stages(console) as progress:
        said = sample_run(
            run,
            request,
            n,
            seed,
            out=out,
            shards=shards,
            truncation=truncation,
            device=device,
            checkpoint=checkpoint,
            progress=progress,
        )
    say(said)


@app.command(rich_help_panel=USE_PANEL)
def predict(
    run: RunArgument,
    images: Images,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="folder for masks and overlay pictures; default: in the run's folder"),
    ] = None,
    shards: Annotated[
        Path | None,
        typer.Option("--shards", help="write shards (image, and class, mask, boxes as read) into this folder instead"),
    ] = None,
    score: Annotated[float, typer.Option(min=0, max=1, help="score from which a box counts")] = 0.3,
    checkpoint: CheckpointOption = None,
    device: Device = "auto",
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="write the readings, for folders and data sets a line each; - for standard output",
        ),
    ] = None,
) -> None:
    """Read images: class, tags, mask and boxes of each.

    A damaged file is named, counted, and the others go on.

    Examples: `mtgen predict digits-32 photo.png --json -`, `mtgen predict digits-32 photos --json read.jsonl -o read`,
    `mtgen predict digits-32 photos --shards data_shards/read`
    """
    from mtgen.inference import json_rows, predict_run, several
    from mtgen.tracking.progress_bar import stages

    if shards is not None and out is not None:
        raise typer.BadParameter("--out is for pictures, and --shards writes a data set instead; give one of them")
    lines = several(images) or (json_file is not None and json_file.suffix == ".jsonl")
    quiet = str(json_file) == "-" or several(images) or len(images) > MAX_PRINTED_FILES
    with stages(console) as progress, json_rows(json_file, lines) as write:

        def seen(row: dict[str, object]) -> None:
            write(row)
            if not quiet:
                say(
                    f"{row['file']}: {row.get('class', '-')} ({row.get('probability', 0):.2f})  {row.get('overlay', '')}"
                )

        summary = predict_run(
            run,
            images,
            out,
            device,
            checkpoint=checkpoint,
            shards=shards,
            least=score,
            seen=seen,
            problem=warn,
            progress=progress,
        )
    _print_summary("read", summary.read, summary.damaged, summary.out, str(json_file) == "-")


@app.command(rich_help_panel=USE_PANEL)
def translate(
    run: RunArgument,
    images: Images,
    to: Annotated[
        str, typer.Option("--to", metavar="DOMAIN", help="data set of the run's mixture, or class, by name or number")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="folder for the pictures; default: in the run's folder")
    ] = None,
    seed: SeedOption = 0,
    checkpoint: CheckpointOption = None,
    device: Device = "auto",
) -> None:
    """Draw images anew in another domain.

    Each becomes a PNG. A damaged file is named, counted, and the others go on.

    Example: `mtgen translate horses-zebras --to zebras photos -o striped`
    """
    from mtgen.inference import several, translate_run
    from mtgen.tracking.progress_bar import stages

    quiet = several(images) or len(images) > MAX_PRINTED_FILES
    with stages(console) as progress:

        def seen(name: str, path: Path) -> None:
            if not quiet:
                say(f"{name}: {path}")

        summary = translate_run(
            run, to, images, out, seed, device, checkpoint=checkpoint, seen=seen, problem=warn, progress=progress
        )
    _print_summary("translated", summary.read, summary.damaged, summary.out, False)


@app.command(rich_help_panel=USE_PANEL)
def explore(
    run: RunArgument,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="port on this machine; the next free one is taken if it is in use")
    ] = 8760,
    host: Annotated[str, typer.Option(help="a name of this machine alone; another is refused")] = "127.0.0.1",
    browser: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="open the page in a browser; default: where there is a screen"),
    ] = None,
    checkpoint: CheckpointOption = None,
    device: Device = "auto",
) -> None:
    """Open a page to try a run with: draw, read, translate.

    By class, caption, sound, layout or another image, and from one wish to another. On loopback only; also while the run trains.
    Example: `mtgen explore digits-all-32`, then open the address that it prints.
    """
    from mtgen.explore import serve_page

    serve_page(run, port, host=host, device=device, checkpoint=checkpoint, browser=browser, say=say)


@app.command(rich_help_panel=USE_PANEL)
def export(
    run: RunArgument,
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="a folder that is not there yet")],
    onnx: Annotated[bool, typer.Option("--onnx", help="also write generator.onnx and predictor.onnx")] = False,
    heads: Annotated[
        str | None,
        typer.Option(
            help="an ONNX file for each of these heads of the predictor: class, tags, mask, boxes, latent, embedding"
        ),
    ] = None,
) -> None:
    """Take a model with you: one folder, with ONNX files if wanted.

    Weights, configuration, tokenizer and a page about it in one folder, which all commands take like a run.

    Examples: `mtgen export digits-32 --to digits`, `mtgen export digits-32 --to digits --onnx --heads class,mask`
    """
    from mtgen.export import export as write

    for path in write(run, to, onnx=onnx, heads=[name.strip() for name in (heads or "").split(",") if name.strip()]):
        say(f"wrote {path}")


@app.command(rich_help_panel=USE_PANEL)
def register(
    run: RunArgument,
    name: Annotated[str, typer.Option("--name", help="of the registered models: NAME-generator and NAME-predictor")],
    alias: Annotated[str | None, typer.Option(help="name that will point at these versions, such as champion")] = None,
) -> None:
    """Register generator and predictor in MLflow, to be served.

    Both are logged as models to the run's MLflow run; `mlflow models serve` serves them.

    Example: `mtgen register digits-32 --name digits --alias champion`
    """
    from mtgen.serving.register import register as log

    log(run, name, alias, say)


def _print_summary(what: str, done: int, damaged: int, out: Path, quiet: bool) -> None:
    """The last line; damaged files make the exit status 3."""
    if not quiet:
        say(f"{what} {done:,} images; results are in {out}")
    if damaged:
        raise WorkerError(f"{damaged:,} of {done + damaged:,} images could not be read; they are named above", 3)
