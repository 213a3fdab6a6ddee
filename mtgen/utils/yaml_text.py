"""YAML as configurations use it: mappings, lists, null and text; what a text means is for the key's type to say."""

import re
from pathlib import Path
from typing import Any

import yaml

from mtgen.errors import ConfigError
from mtgen.registry import suggest

_KEPT = ("null", "str", "seq", "map", "merge")


class _Loader(yaml.SafeLoader):
    """YAML without its guesses (`no`, `1:30`, `010`, dates), without tags, and with no key given twice."""

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
                    None, None, "a key is a word, not a list or mapping", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
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
    """The mapping that a YAML file holds, its numbers still text; `ConfigError` names the file where there is none."""
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
        raise ConfigError(
            f"{path}: a configuration is a mapping of keys to values, this is {what}; `mtgen configs list` names whole ones"
        )
    return values


def override(values: dict[str, Any], assignments: list[str]) -> None:
    """Put `section.key=value` assignments into `values`, each value read as YAML.

    Raises:
        ConfigError: with one line for every assignment that is malformed or goes into a single value.
    """
    problems = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", key):
            problems.append(f"{assignment}: an override is written key=value or section.key=value")
            continue
        *parents, last = key.split(".")
        place = values
        try:
            value = _parse(text, assignment)
            for parent in parents:
                section = place.get(parent)
                if not isinstance(section, dict | None):
                    raise ConfigError(f"{assignment}: {parent} is a single value, not a section")
                place[parent] = place = dict(section or {})  # a copy: in YAML, two sections may be one by `&` and `*`
            place[last] = value
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
