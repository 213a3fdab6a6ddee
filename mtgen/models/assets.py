"""Files that a model needs besides its weights, copied to the folders of runs and exports."""

import functools
import hashlib
from pathlib import Path
from typing import Any

from mtgen.config import Config
from mtgen.storage.source import read_file

ASSET_FILES = {
    ("data", "tokenizer"): "tokenizer.json",
    ("conditions", "caption", "encoder"): "caption_encoder.pt",
    ("discriminator", "backbone", "path"): "backbone.bin",
}
"""Configuration key of such a file -> the name of its copy."""


def _section(values: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """The section with the last of the keys; empty if it does not exist."""
    for key in keys[:-1]:
        values = values.get(key) or {}
    return values


def _named(values: dict[str, Any]) -> dict[tuple[str, ...], str]:
    """The files in a configuration of plain values: key -> path or URL."""
    return {keys: path for keys in ASSET_FILES if (path := _section(values, keys).get(keys[-1]))}


def copy_assets(config: Config, folder: Path) -> None:
    """Copy the files in a configuration to a folder, so that the model does not depend on the originals.

    Raises:
        DataError: a file does not exist or cannot be read.
        OSError: the folder cannot be written.
    """
    for keys, path in _named(config.model_dump(mode="json")).items():
        (folder / ASSET_FILES[keys]).write_bytes(read_file(path, ".".join(keys)))


def with_copied_assets(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Replace the files in a configuration of plain values by their copies in `folder`, where there are copies."""
    for keys in _named(values):
        if (copy := folder / ASSET_FILES[keys]).is_file():
            _section(values, keys)[keys[-1]] = str(copy)
    return values


@functools.lru_cache
def digest(path: str | None, key: str) -> str | None:
    """SHA-256 of a file, which a resumed run compares; `None` without a file. Each file is read once per process."""
    return None if path is None else hashlib.sha256(read_file(path, key)).hexdigest()
