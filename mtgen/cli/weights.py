"""Commands about pretrained networks."""

from pathlib import Path
from typing import Annotated

import typer

from mtgen.cli.common import PREPARE_PANEL, Json, app, say, table, write_json
from mtgen.cli.renames import RenamingGroup

weights_app = typer.Typer(cls=RenamingGroup, no_args_is_help=True, help="Convert pretrained networks of others.")
app.add_typer(weights_app, name="weights", rich_help_panel=PREPARE_PANEL)


@weights_app.command("convert")
def weights_convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="Hugging Face folder (config.json, model.safetensors), .pt2 file, or checkpoint (EfficientNet-Lite, "
            "or of --network)"
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="file to write")],
    network: Annotated[
        str | None,
        typer.Option(metavar="FILE.py:FUNCTION", help="function that returns the checkpoint's module; this runs it"),
    ] = None,
    side: Annotated[
        int | None, typer.Option(min=32, metavar="PIXELS", help="input side of a network of a fixed input size")
    ] = None,
    origin: Annotated[str | None, typer.Option("--source", help="where the weights are from, for pages")] = None,
    licence: Annotated[str | None, typer.Option("--license", help="license of the weights, for pages")] = None,
    json_file: Json = None,
) -> None:
    """Write a pretrained network as one file for `discriminator.backbone`: its graph and its tensors, without code.

    Example: `mtgen weights convert ./convnext-tiny --out convnext.safetensors`
    """
    from mtgen.models.convert_weights import convert_weights

    found = convert_weights(source, out, network, side, source=origin, license=licence)
    levels = ", ".join(f"{c}x{h}x{w}" for c, (h, w) in zip(found["channels"], found["sides"], strict=True))
    table(str(out), {"parameters": f"{found['parameters']:,}", "features": levels})
    say(f"discriminator:\n  backbone:\n    path: {out}\n    sha256: {found['sha256']}")
    write_json(json_file, found)
