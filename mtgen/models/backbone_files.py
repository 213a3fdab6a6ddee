"""The file of a pretrained network that the discriminator reads (`discriminator.backbone`)."""

import functools
import hashlib
import io
import json
import zipfile
from pathlib import Path

from torch import nn

from mtgen.config import BackboneConfig, Config
from mtgen.errors import ConfigError, DataError
from mtgen.networks.backbone import Backbone, BackboneSpec
from mtgen.networks.graph_network import read_graph
from mtgen.networks.pyramid import level_sizes
from mtgen.networks.torchscript import read_torchscript
from mtgen.storage.source import read_file

BACKBONE_KEY = "discriminator.backbone.path"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEFAULT_INPUT_SIDE = 224
"""Longer side of the network's input for images that are not larger, pixels: what most networks were trained at."""
DEFAULT_ENLARGEMENT = 3
"""Small images are scaled by it (measured: benchmarks/results/photographs.md)."""


def build_backbone(config: Config) -> Backbone | None:
    """The pretrained features of a configuration; `None` if it has none.

    Raises:
        DataError: the file does not exist or cannot be read.
        ConfigError: it is another file than its checksum says, or not a network of feature maps.
    """
    settings = config.discriminator.backbone
    if settings is None:
        return None
    network, about = open_network(settings.path, settings.sha256)
    levels, longer = len(config.discriminator.widths), max(config.size)
    spec = BackboneSpec(
        size=config.size,
        side=settings.input_side or max(longer, min(DEFAULT_ENLARGEMENT * longer, DEFAULT_INPUT_SIDE)),
        mean=tuple(settings.mean or json.loads(about.get("mean", "null")) or IMAGENET_MEAN),
        std=tuple(settings.std or json.loads(about.get("std", "null")) or IMAGENET_STD),
        sides=tuple(level_sizes(config.base, levels)),
        levels=settings.levels or levels,
        trainable=settings.trainable,
    )
    return Backbone(network, spec, f"{BACKBONE_KEY}={settings.path}")


@functools.lru_cache(maxsize=1)
def open_network(path: str, sha256: str | None) -> tuple[nn.Module, dict[str, str]]:
    """Load a network once per process, however often networks are built.

    Args:
        sha256: its checksum; `None`: not checked.

    Returns:
        The network, and the texts in its file ("mean", "std", "source", "license") and its "SHA-256".

    Raises:
        DataError, ConfigError: see `build_backbone`.
    """
    named = f"{BACKBONE_KEY}={path}"
    if Path(path).is_dir() or path.endswith(".pt2"):
        what = "a folder" if Path(path).is_dir() else "a program of torch.export"
        raise ConfigError(f"{named}: is {what}; give the file that `mtgen weights convert {path} --out FILE` writes")
    content = read_file(path, BACKBONE_KEY)
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise ConfigError(
            f"discriminator.backbone.sha256={sha256}: {path} has {found}; "
            "give the right file, or its checksum if you trust it"
        )
    if not zipfile.is_zipfile(io.BytesIO(content)):
        if content[:1] == b"\x80":
            raise ConfigError(
                f"{named}: is a pickle, which could run code, and is not loaded; convert it with mtgen weights convert"
            )
        network, about = read_graph(content, named)
        return network, {**about, "SHA-256": found}
    return read_torchscript(io.BytesIO(content), named), {"SHA-256": found}


def backbone_facts(settings: BackboneConfig) -> dict[str, str]:
    """Where a pretrained network comes from, for pages about a run: its file, checksum, source and license."""
    try:
        about = open_network(settings.path, settings.sha256)[1]
    except (ConfigError, DataError):  # the page is about the run, whose file may be elsewhere by now
        about = {}
    named = {name: about[name] for name in ("SHA-256", "source", "license") if about.get(name)}
    return {"file": Path(settings.path).name, **named}
