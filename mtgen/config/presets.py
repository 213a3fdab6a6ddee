"""The configurations that come with mtgen, by name: `mtgen/configs/` is `configs/`, in a repository and in an installed package."""

import shutil
from itertools import takewhile
from pathlib import Path

from mtgen.errors import ConfigError
from mtgen.registry import suggest
from mtgen.version import PACKAGE

PRESETS_FOLDER = PACKAGE / "configs"


def list_presets() -> dict[str, Path]:
    """Name -> file, by alphabet."""
    return {path.stem: path for path in sorted(PRESETS_FOLDER.glob("*.yaml"))}


def preset_summary(path: Path) -> str:
    """What a configuration is for: the first sentence of its head comment."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return " ".join(line.lstrip("# ") for line in lines).partition(". ")[0].rstrip(".") + "."


def find_preset(path: Path) -> Path:
    """The file itself, or the configuration of that name that comes with mtgen.

    Raises:
        ConfigError: it is a bare name and neither of them.
    """
    if path.exists() or path.name != str(path) or path.suffix:
        return path
    known = list_presets()
    if path.name not in known:
        raise ConfigError(
            f"{path}: is no file here, and no configuration that comes with mtgen; {suggest(path.name, list(known))}"
        )
    return known[path.name]


def copy_preset(name: str, out: Path, overwrite: bool = False) -> Path:
    """Copy a configuration that comes with mtgen to a file, or into a folder; its new path.

    Raises:
        ConfigError: there is no such configuration, or a file of that name is there already.
    """
    known = list_presets()
    if name not in known:
        raise ConfigError(f"{name}: no configuration of that name comes with mtgen; {suggest(name, list(known))}")
    path = out / known[name].name if out.is_dir() else out
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: is there already; give another name, or --overwrite")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(known[name], path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); give another place") from error
    return path
