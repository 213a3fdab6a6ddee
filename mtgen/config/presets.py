"""The configurations that ship with mtgen, by name: `mtgen/configs/`, in a repository and in an installed package."""

import shutil
from itertools import takewhile
from pathlib import Path

from mtgen.errors import ConfigError
from mtgen.registry import suggest
from mtgen.utils.yaml_text import read_yaml
from mtgen.version import PACKAGE

PRESETS_FOLDER = PACKAGE / "configs"


def list_presets() -> dict[str, Path]:
    """Name -> file, in alphabetical order."""
    return {path.stem: path for path in sorted(PRESETS_FOLDER.glob("*.yaml"))}


def preset_summary(path: Path) -> str:
    """The purpose of a configuration: the first sentence of its leading comment."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return " ".join(line.lstrip("# ") for line in lines).partition(". ")[0].rstrip(".") + "."


def needs_backbone(path: Path) -> bool:
    """Whether a configuration reads a pretrained network, whose file users have to provide."""
    discriminator = read_yaml(path).get("discriminator") or {}
    return bool(discriminator.get("backbone"))


def find_preset(path: Path) -> Path:
    """The file itself, or the shipped configuration of that name.

    Raises:
        ConfigError: a bare name that is neither.
    """
    if path.exists() or path.name != str(path) or path.suffix:
        return path
    known = list_presets()
    if path.name not in known:
        raise ConfigError(
            f"{path}: neither a file here nor a configuration that ships with mtgen; {suggest(path.name, list(known))}"
        )
    return known[path.name]


def copy_preset(name: str, out: Path, overwrite: bool = False) -> Path:
    """Copy a shipped configuration to a file or into a folder; returns the new path.

    Raises:
        ConfigError: the configuration does not exist, or the file already exists.
    """
    known = list_presets()
    if name not in known:
        raise ConfigError(f"{name}: not a configuration that ships with mtgen; {suggest(name, list(known))}")
    path = out / known[name].name if out.is_dir() else out
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: already exists; give another name, or --overwrite")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(known[name], path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); give another path") from error
    return path
