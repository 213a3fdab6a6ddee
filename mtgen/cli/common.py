"""The application, its console, and the arguments and options that several commands have."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mtgen.cli.renames import RenamingGroup
from mtgen.errors import UserError
from mtgen.version import __version__

app = typer.Typer(
    name="mtgen",
    cls=RenamingGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="One GAN, many vision tasks: generate labeled images, predict, translate.",
    epilog="Exit status: 0 ok, 1 error, 2 usage, 3 data, 4 checkpoint, 5 training, 6 away",
)

PREPARE_PANEL, TRAIN_PANEL, INSPECT_PANEL, USE_PANEL = "Prepare", "Train", "Inspect a run", "Use a run"
"""The panels of `mtgen --help`, by what a user wants to do."""

console = Console(highlight=False)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"mtgen {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Options of `mtgen` itself."""


def find_config(path: Path) -> Path:
    """The file itself, or the shipped configuration of that name."""
    from mtgen.config.presets import find_preset

    return find_preset(path)


ConfigFile = Annotated[
    Path,
    typer.Argument(
        callback=find_config,
        help="YAML file, or the name of a configuration that ships with mtgen (mtgen configs list)",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="settings that override the file's, such as train.images=50000"),
]
RunArgument = Annotated[Path, typer.Argument(help="run folder, or the run's name under runs/")]


def _divert_console(command: typer.Context, path: Path | None) -> Path | None:
    """Print everything but the JSON to standard error while a command writes its JSON to standard output."""
    if str(path) == "-":
        console.stderr = True
        command.call_on_close(lambda: setattr(console, "stderr", False))
    return path


Json = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        callback=_divert_console,
        help="also write the results as JSON to FILE; - for standard output",
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="random seed; results are reproducible")]
CheckpointOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        metavar="best|IMAGES",
        help="checkpoint to use: the best by checkpoint.best, or the one at IMAGES; default: the newest",
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto")]


def reject_commas(names: list[str] | None) -> list[str] | None:
    """Callback of an option that is given once per name.

    Raises:
        typer.BadParameter: a value is a list with commas.
    """
    for name in names or []:
        if "," in name:
            raise typer.BadParameter(f"{name}: give the option once per name")
    return names


def say(text: str) -> None:
    """Print a line for the user without wrapping it, so that paths can be copied."""
    console.print(text, soft_wrap=True, markup=False)


def warn(text: str) -> None:
    """Print a warning to standard error, or above the progress bar of a terminal."""
    if console.is_terminal:
        console.print(f"warning: {text}", soft_wrap=True, markup=False)  # standard error would go through the bar
    else:
        print(f"warning: {text}", file=sys.stderr)


def write_json(path: Path | None, values: Any) -> None:
    """Write values as JSON into a file, or to standard output for `-`; `None` writes nothing.

    Raises:
        UserError: the file cannot be written.
    """
    if path is None:
        return
    text = json.dumps(values, indent=1)
    if str(path) == "-":
        print(text)
    else:
        try:
            path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another file") from None


def table(title: str, values: dict[str, Any]) -> None:
    """Print a table of two columns, names and values."""
    shown = Table(title=title, show_header=False, title_justify="left")
    shown.add_column()
    shown.add_column(overflow="fold")
    for name, value in values.items():
        shown.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    console.print(shown)


def load_config(path: Path, overrides: list[str] | None) -> Any:
    """A `Config` whose paths are absolute, since workers run in other folders.

    Raises:
        ConfigError: with one line for every key at fault.
    """
    from mtgen.config import load
    from mtgen.config.paths import absolute

    return absolute(load(path, overrides))


class WorkerError(UserError):
    """An error with the exit status that it had in a worker or a job."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
