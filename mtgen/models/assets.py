"""Files that a model needs beside its weights: copied into the folders of runs and exports, and found there when the model is used."""

import functools
import hashlib
from pathlib import Path
from typing import Any

from mtgen.config import Config
from mtgen.storage.source import read_file

ASSET_FILES = {("data", "tokenizer"): "tokenizer.json", ("conditions", "caption", "encoder"): "caption_encoder.pt"}
"""Where the configuration names such a file, by path or URL -> what its copy is called."""


def _section(values: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """The section that holds the last of the keys; empty where there is none."""
    for key in keys[:-1]:
        values = values.get(key) or {}
    return values


def _named(values: dict[str, Any]) -> dict[tuple[str, ...], str]:
    """The files that a configuration, as plain values, names: where -> path or URL."""
    return {keys: path for keys in ASSET_FILES if (path := _section(values, keys).get(keys[-1]))}


def copy_assets(config: Config, folder: Path) -> None:
    """Copy what the configuration names into a folder, so that the model can be moved without what it was made of.

    Raises:
        DataError: a file is not there, or cannot be read.
        OSError: the folder cannot be written.
    """
    for keys, path in _named(config.model_dump(mode="json")).items():
        (folder / ASSET_FILES[keys]).write_bytes(read_file(path, ".".join(keys)))


def with_copied_assets(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A model's configuration, as plain values, with the copies in `folder` in place of the files that it was trained with."""
    for keys in _named(values):
        if (copy := folder / ASSET_FILES[keys]).is_file():
            _section(values, keys)[keys[-1]] = str(copy)
    return values


@functools.lru_cache
def digest(path: str | None, key: str) -> str | None:
    """SHA-256 of a file's content, by which a resumed run knows it again; `None` where none is named. Read once a process."""
    return None if path is None else hashlib.sha256(read_file(path, key)).hexdigest()
