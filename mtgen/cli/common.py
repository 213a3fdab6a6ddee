"""What all commands share: the application, its console, and the words of its arguments."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mtgen.errors import UserError
from mtgen.version import __version__

app = typer.Typer(
    name="mtgen",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Generate labeled images, predict the labels of images, translate images.",
    epilog="Exit status: 0 done, 1 an error, 2 a wrong option or configuration, 3 bad data, 4 a bad checkpoint, 5 training had to stop. "
    "Guides: docs/.",
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"mtgen {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and end")
    ] = False,
) -> None:
    pass


PREPARE_PANEL, TRAIN_PANEL, INSPECT_PANEL, USE_PANEL = "Prepare", "Train", "Look at a run", "Use a run"
"""The panels of `mtgen --help`: what a person wants."""

console = Console(highlight=False)


def _find_config(path: Path) -> Path:
    """A file as it is given; a bare name is a configuration that comes with mtgen."""
    from mtgen.config.presets import find_preset

    return find_preset(path)


ConfigFile = Annotated[
    Path,
    typer.Argument(
        callback=_find_config, help="a YAML file, or the name of one that comes with mtgen (mtgen configs list)"
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="settings over the file's, such as train.images=50000"),
]
RunArgument = Annotated[Path, typer.Argument(help="a run's folder, or its name under runs/")]


def _aside(command: typer.Context, path: Path | None) -> Path | None:
    """Where standard output is to be JSON, all that is for people goes to standard error, until the command ends."""
    if str(path) == "-":
        console.stderr = True
        command.call_on_close(lambda: setattr(console, "stderr", False))
    return path


Json = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", callback=_aside, help="also write the numbers to FILE; - for standard output"
    ),
]
SeedOption = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="the same seed, the same pictures")]
CheckpointOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoint", metavar="best|IMAGES", help="which checkpoint, by checkpoint.best or by images; default: newest"
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto")]


def say(text: str) -> None:
    """A line for the user; long paths are left whole, so that they can be copied."""
    console.print(text, soft_wrap=True, markup=False)


def warn(text: str) -> None:
    """The same for what went wrong and did not stop the command: on standard error, beside a progress bar."""
    if console.is_terminal:
        console.print(
            f"warning: {text}", soft_wrap=True, markup=False
        )  # above the bar; it would be drawn into otherwise
    else:
        print(f"warning: {text}", file=sys.stderr)


def write_json(path: Path | None, values: Any) -> None:
    """Write values as JSON into a file, or to standard output for `-`; `None`: nowhere. `UserError` where it cannot be written."""
    if path is None:
        return
    text = json.dumps(values, indent=1)
    if str(path) == "-":
        print(text)
    else:
        try:
            path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


def table(title: str, values: dict[str, Any]) -> None:
    """Print names and values as a table of two columns."""
    shown = Table(title=title, show_header=False, title_justify="left")
    shown.add_column()
    shown.add_column(overflow="fold")
    for name, value in values.items():
        shown.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    console.print(shown)


def load_config(path: Path, overrides: list[str] | None) -> Any:
    """A `Config` with every path in it made absolute, since workers run in other folders; `ConfigError` names every key at fault."""
    from mtgen.config import load
    from mtgen.config.paths import absolute

    return absolute(load(path, overrides))


class WorkerError(UserError):
    """An error that a worker met, with the exit status that it had there."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
