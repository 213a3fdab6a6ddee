"""Absolute paths for the files and folders that a configuration names."""

from pathlib import Path
from typing import Any

from mtgen.config import ConfigSection, PathKind
from mtgen.config.section import SectionT
from mtgen.storage.source import absolute_location
from mtgen.storage.tracking_store import store_uri


def _run(name: str) -> str:
    """A run's folder as an absolute path; a run's name is unchanged."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name


RESOLVER_BY_KIND = {
    PathKind.PATH: absolute_location,
    PathKind.RUN: _run,
    PathKind.STORE: lambda uri: store_uri("", uri),
}


def absolute(section: SectionT) -> SectionT:
    """The section with every path in it, and in nested sections, absolute; URLs and names are unchanged.

    Keys declare themselves as paths with `mtgen.config.PathKind`.

    Raises:
        ConfigError: `tracking.uri` holds a password.
    """
    update = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        place = next((mark for mark in field.metadata if isinstance(mark, PathKind)), None)
        if (new := _within(value) if place is None else value and RESOLVER_BY_KIND[place](value)) != value:
            update[name] = new
    return section.model_copy(update=update)


def _within(value: Any) -> Any:
    if isinstance(value, ConfigSection):
        return absolute(value)
    if isinstance(value, dict):
        return {key: _within(inner) for key, inner in value.items()}
    return [_within(inner) for inner in value] if isinstance(value, list) else value
