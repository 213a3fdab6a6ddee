"""Commands that make, index and check data sets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtgen.cli.common import PREPARE_PANEL, Json, SeedOption, WorkerError, app, console, say, write_json
from mtgen.cli.renames import RenamingGroup
from mtgen.errors import DataError, summarize_lines
from mtgen.utils.shell import shell_command
from mtgen.version import PACKAGE

if TYPE_CHECKING:
    from mtgen.shards.make import BadSamples

shards_app = typer.Typer(
    cls=RenamingGroup, no_args_is_help=True, help="Make, index and check data sets (WebDataset shards)."
)
app.add_typer(shards_app, name="shards", rich_help_panel=PREPARE_PANEL)

DatasetFolder = Annotated[Path, typer.Argument(help="folder with dataset.json")]
DatasetLocation = Annotated[str, typer.Argument(help="folder with dataset.json, or its URL")]
OutFolder = Annotated[Path, typer.Argument(help="folder to write")]
OutLocation = Annotated[str, typer.Argument(help="folder to write, or its URL in a store, such as s3://bucket/set")]


def recipe_names() -> list[str]:
    """Names of the recipes, which are those of their files; to import these for a help text would take a second."""
    return sorted(path.stem for path in (PACKAGE / "shards" / "recipes").glob("[a-z]*.py"))


@shards_app.command("make")
def shards_make(
    recipe: Annotated[str, typer.Argument(help=f"recipe: {', '.join(recipe_names())}")],
    out: OutLocation,
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="options of the recipe, such as resolution=64")
    ] = None,
    seed: SeedOption = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the data set in a folder")] = False,
    check: Annotated[bool, typer.Option("--check", help="show what would be packed, and write nothing")] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="leave out samples that cannot be used, and list them in left_out.txt")
    ] = False,
) -> None:
    """Make a data set from a recipe. The same options write the same bytes, and an interrupted command resumes.

    A shard has 256 MB, and 1,000 samples at least. In a store, each is uploaded when it is full, the index at the end.

    At the end it shows what it understood: splits, classes, masks, boxes, captions, and the files that it left alone.
    `mtgen shards inspect PATH` proposes recipe and options.

    Examples: `mtgen shards make digits data_shards/digits resolution=32`,
    `mtgen shards make folder data_shards/pets images=photos --check`
    """
    from mtgen.config import find_entry, parse_options
    from mtgen.shards.make import BadSamples, make, next_steps, preview
    from mtgen.shards.recipe import RECIPES
    from mtgen.tracking.progress_bar import bar

    values = parse_options(find_entry(RECIPES, recipe).Options, options or [])
    if check:
        with bar(console) as progress:
            found = preview(recipe, seed=seed, progress=progress, **values)
        say(found.text())
        if found.problems and not skip_bad:
            raise _with_remedy(BadSamples(found.problems))
        for line in _left_out(found.problems, "would be"):
            say(line)
        flags = [f"--seed={seed}"] * bool(seed) + ["--overwrite"] * overwrite + ["--skip-bad"] * skip_bad
        say(
            f"Nothing was written. To pack: {shell_command('mtgen shards make', recipe, out, *(options or []), *flags)}"
        )
        return
    understood: list[Any] = []
    try:
        with bar(console) as progress:
            card = make(
                recipe,
                out,
                seed=seed,
                overwrite=overwrite,
                progress=progress,
                skip_bad=skip_bad,
                understood=understood.append,
                **values,
            )
    except BadSamples as error:
        raise _with_remedy(error) from None
    for line in (understood[0].text(), *_left_out(understood[0].problems, "were"), next_steps(out, card)):
        say(line)


def _with_remedy(error: "BadSamples") -> DataError:
    return DataError(f"{error}\nCorrect these, or leave them out with --skip-bad")


def _left_out(problems: list[str], verb: str) -> list[str]:
    """Lines on what is left out by --skip-bad."""
    from mtgen.shards.recipe import MAX_PROBLEMS_SHOWN

    if not problems:
        return []
    return [f"{len(problems):,} {verb} left out:", *(f"  {p}" for p in summarize_lines(problems, MAX_PROBLEMS_SHOWN))]


@shards_app.command("inspect")
def shards_inspect(
    path: Annotated[Path, typer.Argument(help="folder or file of images and labels, in any format")],
) -> None:
    """Say what a folder or file looks like, and print the commands that would make a data set of it, best first.

    Example: `mtgen shards inspect Downloads/my-export`
    """
    from mtgen.shards.inspect import inspect

    say(inspect(path))


def export_names() -> list[str]:
    """Names of the export formats, which are those of their files."""
    return sorted(path.stem for path in (PACKAGE / "shards" / "exporters").glob("[a-z]*.py"))


@shards_app.command("export")
def shards_export(
    name: Annotated[str, typer.Argument(metavar="FORMAT", help=f"format: {', '.join(export_names())}")],
    dataset: DatasetLocation,
    out: OutFolder,
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="options of the format: labels=polygons of yolo"),
    ] = None,
) -> None:
    """Write a data set in a format that other programs train on: COCO's JSON, YOLO's text files, or plain folders.

    Polygons follow the edges of a mask's pixels exactly. What a format cannot hold is counted, and said at the end,
    with the command that reads the export back.

    Examples: `mtgen sample digits-32 -n 500 --shards data_shards/generated`, then
    `mtgen shards export coco data_shards/generated exported`,
    `mtgen shards export yolo data_shards/generated exported-yolo labels=polygons`
    """
    from mtgen.config import find_entry, parse_options
    from mtgen.shards.export import EXPORTERS, export
    from mtgen.tracking.progress_bar import bar

    values = parse_options(find_entry(EXPORTERS, name).Options, options or [])
    with bar(console) as progress:
        done = export(name, dataset, out, progress=progress, **values)
    say(done.text())


@shards_app.command("split")
def shards_split(
    folder: DatasetFolder,
    out: OutLocation,
    fractions: Annotated[
        list[str],
        typer.Argument(metavar="SPLIT=FRACTION...", help="fractions that sum to 1, such as train=0.9 test=0.1"),
    ],
    seed: SeedOption = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the data set in a folder")] = False,
) -> None:
    """Assign the samples of a data set to new splits, by a seeded hash of their keys. Their bytes do not change.

    Example: `mtgen shards split data_shards/mine data_shards/mine-split train=0.8 val=0.1 test=0.1`
    """
    from mtgen.shards.make import next_steps
    from mtgen.shards.split import parse_fractions, split
    from mtgen.tracking.progress_bar import bar

    with bar(console) as progress:
        card = split(folder, out, parse_fractions(fractions), seed, progress, overwrite)
    say(next_steps(out, card))


@shards_app.command("tokenizer")
def shards_tokenizer(
    folder: DatasetLocation,
    vocabulary: Annotated[int, typer.Option(help="largest number of tokens, the end of a caption (0) included")] = 4096,
    split: Annotated[str, typer.Option(help="split whose captions to train on")] = "train",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="file to write; default: tokenizer.json next to dataset.json"),
    ] = None,
) -> None:
    """Train a tokenizer (byte-level BPE) on the captions of a data set.

    Example: `mtgen shards tokenizer data_shards/coco --vocabulary 8192`, then
    `data.tokenizer=data_shards/coco/tokenizer.json`
    """
    from mtgen.shards.tokenizer import train_tokenizer
    from mtgen.tracking.progress_bar import bar

    with bar(console) as progress:
        path, made = train_tokenizer(folder, vocabulary, split, out, progress)
    say(f"wrote {path}: {made.vocabulary:,} tokens. To train with it: data.tokenizer={path}")


@shards_app.command("index")
def shards_index(
    folder: DatasetLocation,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="read only every N-th shard, from the I-th on: N calls, on any systems, share the work, and a call "
            "without this option completes the index",
        ),
    ] = None,
) -> None:
    """Write the index of a data set next to dataset.json, in a folder or a store, so that no start reads the shards.

    Reads only new and changed shards; an interrupted command resumes. An HTTP server cannot be written to: index the
    folder that it serves. Training writes a missing index into the cache of each node.

    Examples: `mtgen shards index data_shards/digits`, `mtgen shards index s3://bucket/set --part 1/16`
    """
    from mtgen.data.index_store import index_dataset, parse_part
    from mtgen.tracking.progress_bar import bar

    own = None if part is None else parse_part(part)
    with bar(console) as progress:
        path = index_dataset(folder, progress, part=own)
    say(f"wrote {path}")
    if own is not None:
        say(f"when all parts are written: {shell_command('mtgen shards index', folder)}")


@shards_app.command("validate")
def shards_validate(folder: DatasetFolder, json_file: Json = None) -> None:
    """Decode every sample and list each problem with its shard and key.

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
        command = shell_command("mtgen train CONFIG", f"data.path={folder}", "--dry-run")
        say(f"Next: {command}; configurations: mtgen configs list")


@shards_app.command("describe")
def shards_describe(
    folder: Annotated[Path, typer.Argument(help="folder with tar files, in subfolders or not")],
    classes: Annotated[
        Path | None, typer.Option("--classes", metavar="FILE", help="names of the classes, one per line, from 0")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing dataset.json")] = False,
) -> None:
    """Write dataset.json for shards that another program made, from their contents.

    Examples: `mtgen shards describe laion-part`, `mtgen shards describe cats --classes names.txt`
    """
    from mtgen.shards.describe import describe
    from mtgen.tracking.progress_bar import stages

    with stages(console) as show:
        found = describe(folder, classes, overwrite, lambda done, total: show("shards", done, total))
    say(found.text())


@shards_app.command("stats")
def shards_stats(folder: DatasetLocation, json_file: Json = None) -> None:
    """Count a data set's contents: classes, sizes, missing labels, mask pixels, boxes, captions, sounds.

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
    folder: DatasetLocation,
    split: Annotated[str | None, typer.Option(help="split to show; default: the first in dataset.json")] = None,
    num_images: Annotated[
        int, typer.Option("--num-images", "-n", min=1, max=5000, help="number of samples, drawn at random by --seed")
    ] = 100,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="page to write; default: NAME-SPLIT.html in this folder"),
    ] = None,
) -> None:
    """Write one self-contained HTML page of samples with their masks, boxes, classes, captions and sounds.

    Example: `mtgen shards view data_shards/digits --num-images 200`
    """
    from mtgen.shards.view import view
    from mtgen.tracking.progress_bar import stages

    with stages(console) as show:
        page = view(folder, split, num_images, seed, out, show)
    say(f"wrote {page} ({page.stat().st_size / 1e6:.1f} MB); open it in a browser")
