"""Commands about configurations: those that come with mtgen, a resolved one, the schema."""

from pathlib import Path
from typing import Annotated

import typer

from mtgen.cli.common import PREPARE_PANEL, ConfigFile, Json, Overrides, app, console, say, write_json
from mtgen.utils.shell import shell_command

configs_app = typer.Typer(no_args_is_help=True, help="Configurations: list, copy or resolve them; their JSON schema.")
app.add_typer(configs_app, name="configs", rich_help_panel=PREPARE_PANEL)


@configs_app.command("list")
def configs_list(json_file: Json = None) -> None:
    """The configurations that come with mtgen, and what each is for. Every command takes their names as well as files.

    Example: `mtgen configs list`
    """
    from rich.table import Table

    from mtgen.config.presets import list_presets, preset_summary

    found = {name: preset_summary(path) for name, path in list_presets().items()}
    shown = Table("name", "what it is for")
    for name, what in found.items():
        shown.add_row(name, what)
    console.print(shown)
    write_json(json_file, found)


@configs_app.command("copy")
def configs_copy(
    name: Annotated[str, typer.Argument(help="as `mtgen configs list` shows it")],
    out: Annotated[Path, typer.Argument(metavar="[FILE|FOLDER]", help="where to")] = Path(),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file that is there")] = False,
) -> None:
    """Copy a configuration, to change it.

    Example: `mtgen configs copy digits-32 mine.yaml`
    """
    from mtgen.config.presets import copy_preset

    path = copy_preset(name, out, overwrite)
    say(f"wrote {path}. Next: edit it; {shell_command('mtgen train', path)}")


@configs_app.command("show")
def configs_show(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print a configuration resolved: every key, with defaults and overrides. Errors come all at once.

    Example: `mtgen configs show digits-32 batch_size=32`
    """
    from mtgen.config import load

    print(load(config, overrides).to_yaml(), end="")


@configs_app.command("schema")
def configs_schema(
    out: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="the file to write; default: standard output")
    ] = None,
) -> None:
    """Write the JSON schema of configurations, by which editors complete and check keys.

    Example: `mtgen configs schema mtgen.schema.json`, and as the first line of a configuration
    `# yaml-language-server: $schema=mtgen.schema.json`
    """
    from mtgen.config.json_schema import json_schema

    write_json(out or Path("-"), json_schema())
    if out is not None:
        say(f"wrote {out}. The first line of a configuration beside it: # yaml-language-server: $schema={out.name}")
