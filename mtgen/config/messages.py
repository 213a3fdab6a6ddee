"""What is wrong with a configuration, in a line a key: the key, its value, and what is possible."""

import reprlib
from difflib import get_close_matches
from types import UnionType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from mtgen.config.run import Config
from mtgen.config.sections import CONDITIONS, TASKS, SectionT
from mtgen.errors import ConfigError
from mtgen.registry import Registry, suggest


def sections() -> dict[str, type[BaseModel]]:
    """Every section of a configuration by its dotted name; "" is the top."""
    found: dict[str, type[BaseModel]] = {"": Config}
    for key, registry in (("tasks", TASKS), ("conditions", CONDITIONS)):
        found |= {f"{key}.{name}": registry[name].Settings for name in registry}

    def add(model: type[BaseModel], parent: str) -> None:
        for name, info in model.model_fields.items():
            kinds = get_args(info.annotation) if isinstance(info.annotation, UnionType) else (info.annotation,)
            for kind in kinds:
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    found[_dotted(parent, name)] = kind
                    add(kind, _dotted(parent, name))

    add(Config, "")
    return found


def _meant(key: str, section: str, sections: dict[str, type[BaseModel]]) -> list[str]:
    """The nearest right key to an unknown one in its own section; else the same key, or the nearest, in another."""
    own = get_close_matches(key, sections[section].model_fields, n=1, cutoff=0.6)
    if own:
        return [_dotted(section, own[0])]
    everywhere = [_dotted(name, field) for name, model in sections.items() for field in model.model_fields]
    return [k for k in everywhere if k.split(".")[-1] == key] or get_close_matches(_dotted(section, key), everywhere, n=1)


def _dotted(*parts: Any) -> str:
    return ".".join(str(part) for part in parts if part != "")


def shown(value: Any) -> str:
    """A value on one line of bounded length; text as it was typed."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 100
    short.maxlevel = 2
    return "null" if value is None else short.repr(value)[1:-1] if isinstance(value, str) else short.repr(value)


def explain(error: Any, section: str, sections: dict[str, type[BaseModel]]) -> str:
    """One line for one of pydantic's errors, met in `section`."""
    parents, last = error["loc"][:-1], error["loc"][-1] if error["loc"] else ""
    section = _dotted(section, *parents)
    key, model = _dotted(section, last), sections.get(section)
    if error["type"] == "extra_forbidden" and model is not None:
        meant = _meant(str(last), section, sections)
        hint = f"did you mean {' or '.join(meant)}? " if meant else ""
        return f"{key}: unknown key; {hint}possible: {', '.join(model.model_fields)}"
    if error["type"] == "missing" and model is not None:
        description = model.model_fields[str(last)].description
        return f"{key}: is missing{f' ({description})' if description else ''}; give it in the file or as {key}=..."
    value = f"{key}={shown(error['input'])}" if key else shown(error["input"])
    if error["type"] == "model_type" and key in sections:
        return f"{value}: is a section, not a single value; its keys: {', '.join(sections[key].model_fields)}"
    message = error["msg"].removeprefix("Value error, ").split(", unable to")[0]
    return f"{value}: {message[0].lower() + message[1:]}"


def check(model: type[SectionT], values: dict[str, Any]) -> SectionT:
    """`values` as a section; `ConfigError` holds one line for every key at fault."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(e, "", {"": model}) for e in error.errors())) from None


def own_problems(key: str, registry: Registry[Any], values: Any) -> list[str]:
    """The errors in the `tasks` or `conditions` section, which only the tasks' and modalities' own files can judge."""
    if not isinstance(values, dict):
        return [f"{key}={shown(values)}: a mapping from a {registry.kind}'s name to its settings; possible: {', '.join(registry)}"]
    problems, known = [], sections()
    for name, settings in values.items():
        if name not in registry:
            problems.append(f"{key}.{name}: unknown {registry.kind}; {suggest(str(name), registry.names())}")
            continue
        try:
            registry[name].Settings.model_validate(settings)
        except ValidationError as error:
            problems += [explain(e, f"{key}.{name}", known) for e in error.errors()]
    return problems
