"""Commands about configurations: list, copy and resolve them, and their JSON schema."""

from pathlib import Path
from typing import Annotated

import typer

from mtgen.cli.common import PREPARE_PANEL, ConfigFile, Json, Overrides, app, console, say, write_json
from mtgen.cli.renames import RenamingGroup
from mtgen.utils.shell import shell_command

configs_app = typer.Typer(
    cls=RenamingGroup, no_args_is_help=True, help="List, copy or resolve configurations; write their JSON schema."
)
app.add_typer(configs_app, name="configs", rich_help_panel=PREPARE_PANEL)


@configs_app.command("list")
def configs_list(json_file: Json = None) -> None:
    """List the configurations that come with mtgen. Every command takes their names in place of files.

    Example: `mtgen configs list`
    """
    from rich.table import Table

    from mtgen.config.presets import list_presets, needs_backbone, preset_summary

    presets = list_presets()
    found = {name: preset_summary(path) for name, path in presets.items()}
    shown = Table("name", "purpose", "needs")
    for name, summary in found.items():
        shown.add_row(name, summary, "a pretrained backbone" if needs_backbone(presets[name]) else "")
    console.print(shown)
    write_json(json_file, found)


@configs_app.command("copy")
def configs_copy(
    name: Annotated[str, typer.Argument(help="name of the configuration (mtgen configs list)")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE|FOLDER", help="file or folder to write; default: this folder")
    ] = Path(),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing file")] = False,
) -> None:
    """Copy a configuration that ships with mtgen, to edit it.

    Example: `mtgen configs copy digits-32 --out mine.yaml`
    """
    from mtgen.config.presets import copy_preset

    path = copy_preset(name, out, overwrite)
    say(f"wrote {path}. Next: edit it; {shell_command('mtgen train', path)}")


@configs_app.command("show")
def configs_show(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print a resolved configuration: every key, defaults and overrides included. All errors are reported at once.

    Example: `mtgen configs show digits-32 batch_size=32`
    """
    from mtgen.config import load

    print(load(config, overrides).to_yaml(), end="")


@configs_app.command("schema")
def configs_schema(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="file to write; default: standard output")
    ] = None,
) -> None:
    """Write the JSON schema of configurations, with which editors complete and check keys.

    Example: `mtgen configs schema --out mtgen.schema.json`, and as the first line of a configuration
    `# yaml-language-server: $schema=mtgen.schema.json`
    """
    from mtgen.config.json_schema import json_schema

    write_json(out or Path("-"), json_schema())
    if out is not None:
        say(f"wrote {out}. First line of a configuration next to it: # yaml-language-server: $schema={out.name}")
