"""Typed configuration: defaults < YAML < `key=value`. Every error names the key, its value and what is possible."""

import copy
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mtgen.config.messages import check, explain, own_problems, sections
from mtgen.config.run import Config, native_precision, resolve_device
from mtgen.config.sections import (
    CONDITIONS,
    EXTRACTORS,
    TASKS,
    WEIGHTINGS,
    AugmentConfig,
    CheckpointConfig,
    ConditionSettings,
    ConfigSection,
    DataConfig,
    ExtractorConfig,
    MixtureConfig,
    PathKind,
    SoundConfig,
    TaskSettings,
    TrainConfig,
)
from mtgen.config.validation import find_conflicts
from mtgen.errors import ConfigError
from mtgen.utils.yaml_text import override, read_yaml

__all__ = [
    "CONDITIONS",
    "EXTRACTORS",
    "TASKS",
    "WEIGHTINGS",
    "AugmentConfig",
    "CheckpointConfig",
    "ConditionSettings",
    "Config",
    "DataConfig",
    "ExtractorConfig",
    "PathKind",
    "ConfigSection",
    "MixtureConfig",
    "SoundConfig",
    "TaskSettings",
    "TrainConfig",
    "check",
    "load",
    "resolve_device",
    "validate",
]


def _without(values: dict[str, Any], location: tuple[Any, ...]) -> None:
    """Drop the key at fault, so that the other keys can still be judged by their defaults."""
    place: Any = values
    for part in location[:-1]:
        if not isinstance(place, dict) or part not in place:
            return
        place = place[part]
    if isinstance(place, dict):
        place.pop(location[-1], None)


def validate(values: dict[str, Any]) -> Config:
    """A `Config` from a mapping; `ConfigError` holds one line for every key at fault, all of them at once."""
    values = copy.deepcopy(values)
    problems = []
    for key, registry in (("tasks", TASKS), ("conditions", CONDITIONS)):
        if key in values and (found := own_problems(key, registry, values[key])):
            problems += found
            values.pop(key)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        blamed = {str(e["loc"][0]) for e in error.errors()} | {".".join(map(str, e["loc"][:2])) for e in error.errors()}
        problems = [explain(e, "", sections()) for e in error.errors()] + problems
        for e in error.errors():
            _without(values, tuple(p for p in e["loc"] if not isinstance(p, int)))
        values.setdefault("name", "name")
        data = values.setdefault("data", {})
        if isinstance(data, dict) and not data.get("mixture"):
            data.setdefault("path", "path")
        try:
            rest = find_conflicts(Config.model_validate(values))
        except ValidationError:
            rest = {}
        problems += [text for key, text in rest.items() if key.split(" ")[0] not in blamed]
    else:
        problems += list(find_conflicts(config).values())
    if problems:
        raise ConfigError("\n".join(problems))
    if config.precision == "auto":
        return config.model_copy(update={"precision": native_precision(resolve_device(config))})
    return config


def load(path: str | Path, assignments: list[str] | None = None) -> Config:
    """Read a YAML file, put the `key=value` assignments over it, and check everything.

    Raises:
        ConfigError: with one line for every key at fault.
    """
    values = read_yaml(Path(path))
    override(values, assignments or [])
    return validate(values)
