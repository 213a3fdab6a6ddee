"""Commands that use a trained run: generate, predict, translate, explore, export."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    reject_commas,
    say,
    warn,
)

if TYPE_CHECKING:
    from mtgen.inference.predict import PredictionSummary

Images = Annotated[
    list[str], typer.Argument(help="image files, folders of them, or data sets (folders or URLs of shards)")
]
MAX_PRINTED_FILES = 20
"""Largest number of files for which each has its line on the terminal."""


@app.command(rich_help_panel=USE_PANEL)
def sample(
    run: RunArgument,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="class, by name or number; A+B for both in one image; default: all, round-robin"),
    ] = None,
    text: Annotated[list[str] | None, typer.Option("--text", help="caption")] = None,
    sound: Annotated[
        list[Path] | None, typer.Option("--sound", metavar="FILE", help="WAV or FLAC file, any sample rate")
    ] = None,
    image: Annotated[list[Path] | None, typer.Option("--image", metavar="FILE", help="reference image")] = None,
    layout: Annotated[
        list[Path] | None,
        typer.Option(
            "--layout",
            metavar="FILE",
            help="mask (PNG whose values are mask classes, 255 for anything) or boxes (JSON, as in shards); "
            "cropped to the run's aspect ratio and resized",
        ),
    ] = None,
    domain: Annotated[
        list[str] | None, typer.Option("--domain", help="domain: data set of the run's mixture, by name or number")
    ] = None,
    num_images: Annotated[int, typer.Option("--num-images", "-n", min=1, help="number of images")] = 64,
    seed: SeedOption = 0,
    truncation: Annotated[
        float, typer.Option(help="0 to 1; smaller values give more typical and less diverse images")
    ] = 1.0,
    interpolate: Annotated[
        int | None,
        typer.Option(
            metavar="STEPS", help="interpolate between latents, or between two prompts, in STEPS images per row"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="PNG file of the grid; default: in the run's folder"),
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(
            "--shards",
            metavar="LOCATION",
            help="write shards (image, mask, boxes, class, caption) to a folder or a store instead of a grid",
        ),
    ] = None,
    checkpoint: CheckpointOption = None,
    device: Device = "auto",
) -> None:
    """Generate images with masks and boxes, or labeled shards.

    Conditions can be combined; an option that is repeated is used round-robin.

    Examples: `mtgen sample digits-32 --class seven -n 64`,
    `mtgen sample digits-all-32 --text "a seven" --layout mask.png`,
    `mtgen sample digits-32 --class one --class seven --interpolate 8`,
    `mtgen sample digits-32 -n 50000 --shards data_shards/generated`
    """
    from mtgen.inference import PromptRequest, interpolate_run, sample_run
    from mtgen.tracking.progress_bar import stages

    if shards is not None and out is not None:
        raise typer.BadParameter("--out writes a grid and --shards a data set; give one of them")
    request = PromptRequest(classes or (), text or (), sound or (), image or (), layout or (), domain or ())
    if interpolate is not None:
        if shards is not None:
            raise typer.BadParameter("--interpolate writes a grid and --shards a data set; give one of them")
        say(
            interpolate_run(
                run,
                request,
                num_images,
                interpolate,
                seed,
                out=out,
                truncation=truncation,
                device=device,
                checkpoint=checkpoint,
            )
        )
        return
    with stages(console) as progress:
        said = sample_run(
            run,
            request,
            num_images,
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
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="folder for masks and overlays; default: in the run's folder"
        ),
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(
            "--shards",
            metavar="LOCATION",
            help="write shards (image, predicted class, mask, boxes) to a folder or a store instead of pictures",
        ),
    ] = None,
    score: Annotated[float, typer.Option(min=0, max=1, help="lowest score of a box")] = 0.3,
    checkpoint: CheckpointOption = None,
    device: Device = "auto",
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="write the predictions, one line per image for folders and data sets; - for standard output",
        ),
    ] = None,
) -> None:
    """Predict the class, tags, mask and boxes of images.

    Damaged files are reported, counted and skipped.

    Examples: `mtgen predict digits-32 photo.png --json -`,
    `mtgen predict digits-32 photos --json predictions.jsonl -o predictions`,
    `mtgen predict digits-32 photos --shards data_shards/predicted`
    """
    from mtgen.inference import has_many_inputs, json_rows, predict_run
    from mtgen.tracking.progress_bar import stages

    if shards is not None and out is not None:
        raise typer.BadParameter("--out writes pictures and --shards a data set; give one of them")
    lines = has_many_inputs(images) or (json_file is not None and json_file.suffix == ".jsonl")
    quiet = str(json_file) == "-" or has_many_inputs(images) or len(images) > MAX_PRINTED_FILES
    with stages(console) as progress, json_rows(json_file, lines) as write:

        def on_result(row: dict[str, object]) -> None:
            write(row)
            if not quiet:
                label = f"{row.get('class', '-')} ({row.get('probability', 0):.2f})"
                say(f"{row['file']}: {label}  {row.get('overlay', '')}")

        summary = predict_run(
            run,
            images,
            out,
            device,
            checkpoint=checkpoint,
            shards=shards,
            min_score=score,
            on_result=on_result,
            on_error=warn,
            progress=progress,
        )
    _print_summary("predicted", summary, str(json_file) == "-")


@app.command(rich_help_panel=USE_PANEL)
def translate(
    run: RunArgument,
    images: Images,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="DOMAIN", help="target: data set of the run's mixture, or class, by name or number"
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="folder for the images; default: in the run's folder"),
    ] = None,
    seed: SeedOption = 0,
    checkpoint: CheckpointOption = None,
    device: Device = "auto",
) -> None:
    """Translate images to another domain or class.

    Writes one PNG per image. Damaged files are reported, counted and skipped.

    Example: `mtgen translate horses-zebras --to zebras photos -o striped`
    """
    from mtgen.inference import has_many_inputs, translate_run
    from mtgen.tracking.progress_bar import stages

    quiet = has_many_inputs(images) or len(images) > MAX_PRINTED_FILES
    with stages(console) as progress:

        def on_result(name: str, path: Path) -> None:
            if not quiet:
                say(f"{name}: {path}")

        summary = translate_run(
            run,
            to,
            images,
            out,
            seed,
            device,
            checkpoint=checkpoint,
            on_result=on_result,
            on_error=warn,
            progress=progress,
        )
    _print_summary("translated", summary, False)


@app.command(rich_help_panel=USE_PANEL)
def explore(
    run: RunArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="port; the next free one if it is in use")] = 8760,
    host: Annotated[str, typer.Option(help="loopback address to bind")] = "127.0.0.1",
    browser: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="open the page in a browser; default: if there is a display"),
    ] = None,
    checkpoint: CheckpointOption = None,
    device: Device = "auto",
) -> None:
    """Serve a page to generate, predict and translate with a run.

    Conditions are classes, captions, sounds, layouts and images; two prompts can be interpolated. Listens on loopback
    only, and works during training too.

    Example: `mtgen explore digits-all-32`, then open the address that it prints.
    """
    from mtgen.explore import serve_page

    serve_page(run, port, host=host, device=device, checkpoint=checkpoint, browser=browser, say=say)


@app.command(rich_help_panel=USE_PANEL)
def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="new folder to write")],
    onnx: Annotated[bool, typer.Option("--onnx", help="also write generator.onnx and predictor.onnx")] = False,
    heads: Annotated[
        list[str] | None,
        typer.Option(
            "--heads",
            metavar="NAME",
            callback=reject_commas,
            help="also write a separate ONNX file for a head of the predictor: class, tags, mask, boxes, latent, "
            "embedding; repeatable",
        ),
    ] = None,
) -> None:
    """Export a model to one folder, with ONNX files on request.

    The folder holds weights, configuration, tokenizer and a model card; all commands take it in place of a run.

    Examples: `mtgen export digits-32 --out digits`,
    `mtgen export digits-32 --out digits --onnx --heads class --heads mask`
    """
    from mtgen.export import export as write

    for path in write(run, out, onnx=onnx, heads=heads or []):
        say(f"wrote {path}")


@app.command(rich_help_panel=USE_PANEL)
def register(
    run: RunArgument,
    name: Annotated[
        str, typer.Option("--name", help="name of the registered models, NAME-generator and NAME-predictor")
    ],
    alias: Annotated[str | None, typer.Option(help="alias for these versions, such as champion")] = None,
) -> None:
    """Register generator and predictor in MLflow for serving.

    Logs both as models to the run's MLflow run; `mlflow models serve` serves them.

    Example: `mtgen register digits-32 --name digits --alias champion`
    """
    from mtgen.serving.register import register as log

    log(run, name, alias, say)


def _print_summary(what: str, summary: "PredictionSummary", quiet: bool) -> None:
    """Print the last lines.

    Raises:
        WorkerError: images were damaged, status 3.
    """
    if not quiet:
        say(f"{what} {summary.processed:,} images; results are in {summary.out}")
        for line in summary.left_alone:
            say(f"left alone: {line}")
    if summary.damaged:
        total = summary.processed + summary.damaged
        raise WorkerError(f"{summary.damaged:,} of {total:,} images could not be read; see above", 3)
