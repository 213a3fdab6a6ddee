"""The YAML of configurations: mappings, lists, null and text; the type of a key decides how its text is read."""

import re
from pathlib import Path
from typing import Any

import yaml

from mtgen.errors import ConfigError
from mtgen.registry import suggest

_KEPT = ("null", "str", "seq", "map", "merge")


class _Loader(yaml.SafeLoader):
    """YAML without implicit types (`no`, `1:30`, `010`, dates), tags and duplicate keys."""

    yaml_constructors = {
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix("tag:yaml.org,2002:") in _KEPT
    }
    yaml_implicit_resolvers = {
        first: [(tag, rule) for tag, rule in rules if tag.removeprefix("tag:yaml.org,2002:") in _KEPT]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a word, not a list or mapping", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value!r}", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise ConfigError(f"{where}: not readable as YAML: {reason}") from None
    except RecursionError:
        raise ConfigError(f"{where}: not readable as YAML: nested too deeply") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, with numbers as text.

    Raises:
        ConfigError: the file cannot be read, or does not hold a mapping; the message names it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = [] if path.exists() else sorted(p.as_posix() for p in path.parent.glob("*.yaml"))
        hint = f"; {suggest(path.as_posix(), known)}" if known else ""
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason}){hint}") from None
    values = _parse(text, str(path))
    if not isinstance(values, dict):
        what = {type(None): "empty", list: "a list"}.get(type(values), "plain text")
        raise ConfigError(f"{path}: is {what}, not a mapping of keys to values; `mtgen configs list` names examples")
    return values


def override(values: dict[str, Any], assignments: list[str]) -> None:
    """Set `section.key=value` assignments in `values`; each value is parsed as YAML.

    Raises:
        ConfigError: one line for each assignment that is malformed, or sets a key inside a single value.
    """
    problems = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", key):
            problems.append(f"{assignment}: not an override; write key=value or section.key=value")
            continue
        *parents, last = key.split(".")
        place = values
        try:
            value = _parse(text, assignment)
            for parent in parents:
                section = place.get(parent)
                if not isinstance(section, dict | None):
                    raise ConfigError(f"{assignment}: {parent} is a single value, not a section")
                place[parent] = place = dict(section or {})  # a copy: YAML anchors can make two sections one object
            place[last] = value
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
