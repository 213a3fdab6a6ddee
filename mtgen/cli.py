"""Commands: parse, call, print; no logic. Heavy imports wait until a command needs them, so that `--help` is quick."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mtgen.errors import UserError

app = typer.Typer(
    name="mtgen",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train one generator and one discriminator on many tasks at once: draw images *with* their class and mask, and read them back.",
    epilog="Exit status: 0 done, 1 an error, 2 a wrong option or configuration, 3 bad data, 4 a bad checkpoint, 5 training had to stop.",
)
shards_app = typer.Typer(no_args_is_help=True, help="Make, index and check data sets (WebDataset shards).")
app.add_typer(shards_app, name="shards", rich_help_panel="Data")

console = Console(highlight=False)

ConfigFile = Annotated[Path, typer.Argument(help="a YAML file, such as configs/digits-32.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings over the file's, such as train.images=50000")
]
Run = Annotated[Path, typer.Argument(help="a run's folder, or its name under runs/")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="also write the numbers to FILE; - for standard output")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto")]


def _say(text: str) -> None:
    """A line for the user; long paths are left whole, so that they can be copied."""
    console.print(text, soft_wrap=True, markup=False)


def _write_json(path: Path | None, values: Any) -> None:
    if path is None:
        return
    text = json.dumps(values, indent=1)
    if str(path) == "-":
        print(text)
    else:
        path.write_text(text + "\n", encoding="utf-8")


def _table(title: str, values: dict[str, Any]) -> None:
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in values.items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    console.print(table)


def _load_config(path: Path, overrides: list[str] | None) -> Any:
    from mtgen.config import load
    from mtgen.data.source import located

    config = load(path, overrides)
    data = config.data
    places = {
        "path": data.path and located(data.path),
        "mixture": [share.model_copy(update={"path": located(share.path)}) for share in data.mixture],
    }
    return config.model_copy(update={"runs": str(Path(config.runs).absolute()), "data": data.model_copy(update=places)})


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
    from dataclasses import asdict

    from mtgen.orchestrate import launch
    from mtgen.progress import Progress

    settings = _load_config(config, overrides)

    def watch(folder: Path, start: int, alive: Callable[[], bool]) -> None:
        with Progress(settings.train.images, settings.name, console) as progress:
            progress.status("starting")
            progress.follow(folder, start, alive)

    outcome = launch(settings, watch=watch, say=_say, resume=resume)
    _write_json(json_file, asdict(outcome))
    if outcome.status == "failed":
        raise UserErrorFrom(outcome.message, outcome.exit_status)
    again = f"mtgen train {config} {' '.join(overrides or [])}".strip()
    if outcome.status == "finished":
        _say(
            f"finished: {outcome.images:,} images{f' ({outcome.message})' if outcome.message else ''}. "
            f"Next: mtgen evaluate {settings.folder}; mtgen sample {settings.folder}; mtgen ui"
        )
    else:
        written = ", checkpoint written" if outcome.images else ""
        _say(f"{outcome.status} at {outcome.images:,} images{written}. To go on: {again}")


class UserErrorFrom(UserError):
    """An error that a worker met, with the exit status that it had there."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@app.command("config", rich_help_panel="Train")
def show_config(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print the resolved configuration: every key, with defaults and overrides.

    Example: `mtgen config configs/digits-32.yaml batch_size=32`
    """
    from mtgen.config import load

    print(load(config, overrides).to_yaml(), end="")


@app.command(rich_help_panel="Look at a run")
def inspect(run: Run, json_file: Json = None) -> None:
    """Position, images seen, parameter counts and SHA-256 over the parameters of a run's newest checkpoint.

    Example: `mtgen inspect digits-32` - two runs that should be equal have equal digests.
    """
    from mtgen.runs import describe, find_run

    values = describe(find_run(run))
    _table(str(run), values)
    _write_json(json_file, values)


@app.command(rich_help_panel="Look at a run")
def evaluate(
    run: Run,
    data: Annotated[str | None, typer.Option("--against", help="data set to test on; default: the run's own")] = None,
    n: Annotated[int | None, typer.Option("--n", help="images to generate; default: evaluate.samples")] = None,
    seed: int = 0,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Every metric in one pass: class accuracy, mask mIoU, CAS, diversity, ... ; logged to the run's MLflow run too.

    Example: `mtgen evaluate digits-32 --json metrics.json`
    """
    from mtgen.progress import stages
    from mtgen.snapshot import evaluate_run

    with stages(console) as progress:
        report = evaluate_run(run, data, n, seed, device, progress)
    _table(str(run), dict(report))
    for name, reason in report.skipped.items():
        _say(f"left out: {name}: {reason}")
    _write_json(json_file, {**report, "skipped": report.skipped})


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

    _say(sample_run(run, classes, n, seed, out, shards, device))


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
        _say(f"{row['file']}: {row.get('class', '-')} ({row.get('probability', 0):.2f})  {row.get('overlay', '')}")
    _write_json(json_file, rows)
    if problems:
        raise UserErrorFrom("\n".join(problems), 3)


@app.command(rich_help_panel="Look at a run")
def ui(
    runs: Annotated[Path, typer.Option(help="folder of all runs")] = Path("runs"),
    port: Annotated[int, typer.Option(help="port on this machine; the next free one is taken if it is in use")] = 5000,
) -> None:
    """Open MLflow's own pages over the runs, on loopback only.

    Example: `mtgen ui`, then open the address that it prints.
    """
    from mtgen.ui import serve_ui

    serve_ui(runs, port=port, say=_say)


@app.command(rich_help_panel="Train")
def smoke(
    device: Device = "auto",
    keep: Annotated[Path | None, typer.Option(help="folder for what the test leaves behind; default: a temporary one")] = None,
    json_file: Json = None,
) -> None:
    """Try everything on this machine in under three minutes: train in each precision, resume bit for bit, sample, track.

    Example: `mtgen smoke --device cpu`
    """
    from mtgen.smoke import smoke_test

    rows = smoke_test(device, keep, console)
    _write_json(json_file, rows)
    if any(row["result"] == "failed" for row in rows):
        raise UserErrorFrom("the smoke test found something broken: see the table", 1)


@shards_app.command("make")
def shards_make(
    recipe: Annotated[str, typer.Argument(help="digits, shapes, folder, coco, voc")],
    out: Annotated[Path, typer.Argument(help="folder to write")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="the recipe's options, such as resolution=64")
    ] = None,
    seed: int = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what is in the folder")] = False,
) -> None:
    """Make a data set by a recipe, the same bytes on every run. One that was interrupted goes on with the same command.

    Examples: `mtgen shards make digits data_shards/digits resolution=32`, `mtgen shards make folder data_shards/pets images=photos`
    """
    from mtgen.progress import bar
    from mtgen.shards.make import make, parse_options

    with bar(console) as progress:
        card = make(recipe, out, seed=seed, overwrite=overwrite, progress=progress, **parse_options(recipe, options or []))
    counts = ", ".join(f"{split.samples:,} {name}" for name, split in card.splits.items())
    _say(f"made {out}: {counts}. Next: mtgen shards validate {out}")


@shards_app.command("split")
def shards_split(
    folder: Annotated[Path, typer.Argument(help="folder with dataset.json")],
    out: Annotated[Path, typer.Argument(help="folder to write")],
    shares: Annotated[list[str], typer.Argument(metavar="SPLIT=SHARE...", help="shares that add up to 1, such as train=0.9 test=0.1")],
    seed: int = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what is in the folder")] = False,
) -> None:
    """Deal the samples of a data set to other splits by a seeded hash of their keys, bytes unchanged.

    Example: `mtgen shards split data_shards/mine data_shards/mine-split train=0.8 val=0.1 test=0.1`
    """
    from mtgen.progress import bar
    from mtgen.shards.split import parse_shares, split

    with bar(console) as progress:
        card = split(folder, out, parse_shares(shares), seed, progress, overwrite)
    counts = ", ".join(f"{part.samples:,} {name}" for name, part in card.splits.items())
    _say(f"made {out}: {counts}. Next: mtgen shards validate {out}")


@shards_app.command("index")
def shards_index(folder: Annotated[str, typer.Argument(help="folder with dataset.json, or its URL")]) -> None:
    """Write the index beside dataset.json, or of a URL into the cache; only shards that are new or changed are read.

    Training makes one in the cache by itself where there is none. Example: `mtgen shards index data_shards/digits`
    """
    from mtgen.data.index import beside, build_index, cached
    from mtgen.data.source import is_url
    from mtgen.progress import bar

    with bar(console) as progress:
        path = build_index(folder, out=cached(folder) if is_url(folder) else beside(folder), progress=progress)
    _say(f"wrote {path}")


@shards_app.command("validate")
def shards_validate(folder: Annotated[Path, typer.Argument(help="folder with dataset.json")], json_file: Json = None) -> None:
    """Decode every sample and list every problem with its shard and key.

    Example: `mtgen shards validate data_shards/digits`
    """
    from mtgen.progress import bar
    from mtgen.shards.validate import validate

    with bar(console) as progress:
        report = validate(folder, progress=progress)
    _say(report.text())
    _write_json(json_file, report.to_dict())
    if report.problems:
        raise UserErrorFrom(f"{folder}: {len(report.problems)} problems", 3)


@shards_app.command("describe")
def shards_describe(
    folder: Annotated[Path, typer.Argument(help="folder with tar files, in folders of their own or not")],
    classes: Annotated[Path | None, typer.Option("--classes", metavar="FILE", help="names of the classes, a line each, from 0")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the dataset.json that is there")] = False,
) -> None:
    """Write dataset.json for shards that somebody else made, from what is in them.

    Examples: `mtgen shards describe laion-part`, `mtgen shards describe cats --classes names.txt`
    """
    from mtgen.progress import stages
    from mtgen.shards.describe import describe

    with stages(console) as show:
        found = describe(folder, classes, overwrite, lambda done, total: show("shards", done, total))
    _say(found.text())


@shards_app.command("stats")
def shards_stats(folder: Annotated[str, typer.Argument(help="folder with dataset.json, or its URL")], json_file: Json = None) -> None:
    """Count what a data set holds: classes, sizes, missing labels, mask pixels, boxes, captions, sounds.

    Example: `mtgen shards stats data_shards/digits --json stats.json`
    """
    from dataclasses import asdict

    from mtgen.progress import stages
    from mtgen.shards.stats import stats, tables

    with stages(console) as show:
        found = stats(folder, show)
    if str(json_file) != "-":
        console.print(*tables(found), sep="\n")
    _write_json(json_file, {name: asdict(split) for name, split in found.items()})


@shards_app.command("view")
def shards_view(
    folder: Annotated[str, typer.Argument(help="folder with dataset.json, or its URL")],
    split: Annotated[str | None, typer.Option(help="which split; default: the first in dataset.json")] = None,
    n: Annotated[int, typer.Option("--n", min=1, max=5000, help="samples to show")] = 100,
    seed: Annotated[int, typer.Option(help="another seed, other samples")] = 0,
    out: Annotated[Path | None, typer.Option(help="the page to write; default: NAME-SPLIT.html here")] = None,
) -> None:
    """Write one HTML page to look at samples: masks, boxes, classes, captions, sound. It needs no network and can be sent away.

    Example: `mtgen shards view data_shards/digits --n 200`
    """
    from mtgen.progress import stages
    from mtgen.shards.view import view

    with stages(console) as show:
        page = view(folder, split, n, seed, out, show)
    _say(f"wrote {page} ({page.stat().st_size / 1e6:.1f} MB); open it in a browser")


def main() -> None:
    """Entry point: an error of the user's is one message and an exit status, never a traceback."""
    try:
        app()
    except UserError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)


if __name__ == "__main__":
    main()
