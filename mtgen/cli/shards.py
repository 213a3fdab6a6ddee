"""Commands that make, index and check data sets."""

from pathlib import Path
from typing import Annotated

import typer

from mtgen.cli.common import PREPARE_PANEL, Json, WorkerError, app, console, say, write_json
from mtgen.utils.shell import shell_command

shards_app = typer.Typer(no_args_is_help=True, help="Make, index and check data sets (WebDataset shards).")
app.add_typer(shards_app, name="shards", rich_help_panel=PREPARE_PANEL)


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
    from mtgen.shards.make import make, next_steps, parse_options
    from mtgen.tracking.progress_bar import bar

    with bar(console) as progress:
        card = make(
            recipe, out, seed=seed, overwrite=overwrite, progress=progress, **parse_options(recipe, options or [])
        )
    say(next_steps(out, card))


@shards_app.command("split")
def shards_split(
    folder: Annotated[Path, typer.Argument(help="folder with dataset.json")],
    out: Annotated[Path, typer.Argument(help="folder to write")],
    shares: Annotated[
        list[str], typer.Argument(metavar="SPLIT=SHARE...", help="shares that add up to 1, such as train=0.9 test=0.1")
    ],
    seed: int = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what is in the folder")] = False,
) -> None:
    """Deal the samples of a data set to other splits by a seeded hash of their keys, bytes unchanged.

    Example: `mtgen shards split data_shards/mine data_shards/mine-split train=0.8 val=0.1 test=0.1`
    """
    from mtgen.shards.make import next_steps
    from mtgen.shards.split import parse_shares, split
    from mtgen.tracking.progress_bar import bar

    with bar(console) as progress:
        card = split(folder, out, parse_shares(shares), seed, progress, overwrite)
    say(next_steps(out, card))


@shards_app.command("tokenizer")
def shards_tokenizer(
    folder: Annotated[str, typer.Argument(help="folder with dataset.json, or its URL")],
    vocabulary: Annotated[
        int, typer.Option(help="numbers that a token can have, at most; 0 is the caption's end")
    ] = 4096,
    split: Annotated[str, typer.Option(help="whose captions")] = "train",
    out: Annotated[
        Path | None, typer.Option(help="the file to write; default: tokenizer.json beside dataset.json")
    ] = None,
) -> None:
    """Train a tokenizer (byte-level BPE) on the captions of a data set.

    Example: `mtgen shards tokenizer data_shards/coco --vocabulary 8192`, then `data.tokenizer=data_shards/coco/tokenizer.json`
    """
    from mtgen.shards.tokenizer import train_tokenizer
    from mtgen.tracking.progress_bar import bar

    with bar(console) as progress:
        path, made = train_tokenizer(folder, vocabulary, split, out, progress)
    say(f"wrote {path}: {made.vocabulary:,} numbers. To train with it: data.tokenizer={path}")


@shards_app.command("index")
def shards_index(folder: Annotated[str, typer.Argument(help="folder with dataset.json, or its URL")]) -> None:
    """Write the index beside dataset.json, or of a URL into the cache; only shards that are new or changed are read.

    Training makes one in the cache by itself where there is none. Example: `mtgen shards index data_shards/digits`
    """
    from mtgen.data.index_build import build_index, dataset_index_path, user_index_path
    from mtgen.storage.source import is_url
    from mtgen.tracking.progress_bar import bar

    with bar(console) as progress:
        path = build_index(
            folder, out=user_index_path(folder) if is_url(folder) else dataset_index_path(folder), progress=progress
        )
    say(f"wrote {path}")


@shards_app.command("validate")
def shards_validate(
    folder: Annotated[Path, typer.Argument(help="folder with dataset.json")], json_file: Json = None
) -> None:
    """Decode every sample and list every problem with its shard and key.

    Example: `mtgen shards validate data_shards/digits`
    """
    from mtgen.shards.validate import validate
    from mtgen.tracking.progress_bar import bar

    with bar(console) as progress:
        report = validate(folder, progress=progress)
    say(report.text())
    write_json(json_file, report.to_dict())
    if report.problems:
        raise WorkerError(f"{folder}: {len(report.problems)} problems", 3)
    if str(json_file) != "-":
        say(
            f"Next: {shell_command('mtgen train CONFIG', f'data.path={folder}', '--dry-run')}; configurations: mtgen configs list"
        )


@shards_app.command("describe")
def shards_describe(
    folder: Annotated[Path, typer.Argument(help="folder with tar files, in folders of their own or not")],
    classes: Annotated[
        Path | None, typer.Option("--classes", metavar="FILE", help="names of the classes, a line each, from 0")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the dataset.json that is there")] = False,
) -> None:
    """Write dataset.json for shards that somebody else made, from what is in them.

    Examples: `mtgen shards describe laion-part`, `mtgen shards describe cats --classes names.txt`
    """
    from mtgen.shards.describe import describe
    from mtgen.tracking.progress_bar import stages

    with stages(console) as show:
        found = describe(folder, classes, overwrite, lambda done, total: show("shards", done, total))
    say(found.text())


@shards_app.command("stats")
def shards_stats(
    folder: Annotated[str, typer.Argument(help="folder with dataset.json, or its URL")], json_file: Json = None
) -> None:
    """Count what a data set holds: classes, sizes, missing labels, mask pixels, boxes, captions, sounds.

    Example: `mtgen shards stats data_shards/digits --json stats.json`
    """
    from dataclasses import asdict

    from mtgen.shards.stats import stats, tables
    from mtgen.tracking.progress_bar import stages

    with stages(console) as show:
        found = stats(folder, show)
    if str(json_file) != "-":
        console.print(*tables(found), sep="\n")
    write_json(json_file, {name: asdict(split) for name, split in found.items()})


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
    from mtgen.shards.view import view
    from mtgen.tracking.progress_bar import stages

    with stages(console) as show:
        page = view(folder, split, n, seed, out, show)
    say(f"wrote {page} ({page.stat().st_size / 1e6:.1f} MB); open it in a browser")
