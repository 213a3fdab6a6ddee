"""Values into a `Config`: first every key by itself, then keys that contradict one another."""

import copy
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mtgen.config.conflicts import find_conflicts
from mtgen.config.messages import ConfigProblem, explain, plugin_problems, sections
from mtgen.config.run import Config
from mtgen.config.section import CONDITIONS, TASKS
from mtgen.errors import ConfigError
from mtgen.utils.yaml_text import override, read_yaml

PLACEHOLDER = "placeholder"
"""Value of a required key that is missing or wrong, while the other keys are checked against one another."""


def validate(values: dict[str, Any]) -> Config:
    """A `Config` from a mapping. Whether some hardware can train it is another question (`mtgen.config.hardware`).

    Raises:
        ConfigError: with one line for every key at fault, all of them at once.
    """
    config, problems = _check_keys(values)
    if config is None:
        problems += _conflicts_of_the_rest(values, problems)
    else:
        problems = find_conflicts(config)
    if config is None or problems:
        raise ConfigError("\n".join(problem.text for problem in problems))
    return config


def _check_keys(values: dict[str, Any]) -> tuple[Config | None, list[ConfigProblem]]:
    """First pass: the configuration if every key is known and has a possible value, else the problems."""
    plugins = [
        problem
        for section, registry in (("tasks", TASKS), ("conditions", CONDITIONS))
        if section in values
        for problem in plugin_problems(section, registry, values[section])
    ]
    wrong = {problem.path[0] for problem in plugins}
    try:
        config = Config.model_validate({key: value for key, value in values.items() if key not in wrong})
    except ValidationError as error:
        return None, [explain(e, "", sections()) for e in error.errors()] + plugins
    return (None if plugins else config), plugins


def _conflicts_of_the_rest(values: dict[str, Any], problems: list[ConfigProblem]) -> list[ConfigProblem]:
    """Second pass where the first found problems: conflicts between the keys that have none."""
    rest = copy.deepcopy(values)
    for problem in problems:
        _drop(rest, problem.path[:1] if problem.path[0] in ("tasks", "conditions") else problem.path)
    if any(problem.concerns("name") for problem in problems):
        rest["name"] = PLACEHOLDER
    if any(problem.concerns("data", "path") or problem.concerns("data", "mixture") for problem in problems):
        rest.setdefault("data", {}).setdefault("path", PLACEHOLDER)
    try:
        conflicts = find_conflicts(Config.model_validate(rest))
    except ValidationError:  # a section lacks a required key, which was wrong
        return []
    return [c for c in conflicts if not any(problem.concerns(*c.path) for problem in problems)]


def _drop(values: dict[str, Any], path: tuple[Any, ...]) -> None:
    """Remove a key; of something within a list, the whole list."""
    section = values
    for part in path[:-1]:
        if not isinstance(section.get(part), dict):
            section.pop(part, None)
            return
        section = section[part]
    section.pop(path[-1], None)


def load(path: str | Path, assignments: list[str] | None = None) -> Config:
    """The configuration of a YAML file with `key=value` assignments over it.

    Raises:
        ConfigError: with one line for every key at fault.
    """
    values = read_yaml(Path(path))
    override(values, assignments or [])
    return validate(values)
