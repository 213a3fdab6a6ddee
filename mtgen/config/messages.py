"""Errors in a configuration, each as one line: the key, its value, what is wrong, and what to do."""

import re
import reprlib
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from mtgen.config.legacy import RENAMED_KEYS, renamed_keys
from mtgen.config.run import Config
from mtgen.config.schedule import Schedule
from mtgen.config.section import CONDITIONS, TASKS, SectionT
from mtgen.errors import ConfigError
from mtgen.registry import Registry, suggest
from mtgen.utils.yaml_text import override

T = TypeVar("T")

KEY_ALIASES = {
    "deepspeed": ["zero_stage", "precision", "batch_size", "train.accumulation"],
    "zero_optimization": ["zero_stage"],
    "train_micro_batch_size_per_gpu": ["batch_size", "train.accumulation"],
    "gradient_accumulation_steps": ["train.accumulation"],
    "steps_per_print": ["train.log_every"],
    "scheduler": ["train.warmup", "train.final_rate"],
    "optimizer": ["generator.learning_rate", "discriminator.learning_rate"],
    "lr": ["generator.learning_rate", "discriminator.learning_rate"],
    "betas": ["train.beta2"],
    **dict.fromkeys(("fp16", "bf16", "amp", "dtype"), ["precision"]),
    **dict.fromkeys(("epochs", "steps", "max_steps", "kimg"), ["train.images"]),
    **dict.fromkeys(("gpus", "num_gpus", "num_workers", "world_size"), ["workers"]),
    **dict.fromkeys(("dataset", "data_dir", "data_path"), ["data.path"]),
    **dict.fromkeys(("outdir", "output_dir", "log_dir"), ["runs"]),
    "image_size": ["resolution"],
}
"""Names in DeepSpeed and other trainers -> keys of mtgen, which writes DeepSpeed's configuration itself."""


@dataclass(frozen=True)
class ConfigProblem:
    """One thing that is wrong with a configuration.

    Attributes:
        path: the key at fault and the sections that it is in, from the top; of a list, the position.
        text: the message, one line, which begins with the dotted key.
    """

    path: tuple[Any, ...]
    text: str

    def concerns(self, *path: str) -> bool:
        """Whether it is about this key, a section that holds it, or something within it."""
        return all(own == other for own, other in zip(self.path, path, strict=False))


def sections() -> dict[str, type[BaseModel]]:
    """Dotted name -> section of a configuration; "" is the top, and a section in a list has the list's name."""
    found: dict[str, type[BaseModel]] = {"": Config}

    def add(model: type[BaseModel], parent: str) -> None:
        for name, info in model.model_fields.items():
            for kind in (info.annotation, *get_args(info.annotation)):
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    found[_dotted(parent, name)] = kind
                    add(kind, _dotted(parent, name))

    for key, registry in (("tasks", TASKS), ("conditions", CONDITIONS)):
        for name in registry:
            found[f"{key}.{name}"] = registry[name].Settings
            add(registry[name].Settings, f"{key}.{name}")
    add(Config, "")
    return found


def _meant(key: str, section: str, sections: dict[str, type[BaseModel]]) -> list[str]:
    """Likely meanings of an unknown key.

    The first of: the key for another trainer's name; the nearest key of its section; keys of this name, today's or an
    older one, in other sections; the nearest key of all sections.
    """
    word, place = key.lower().replace("-", "_"), _without_numbers(section)
    own = [get_close_matches(word, sections[place].model_fields, n=1, cutoff=cutoff) for cutoff in (0.75, 0.6)]
    everywhere = [
        _dotted(name, field)
        for name, model in sections.items()
        if model is not Schedule  # its keys are those of many settings
        for field in model.model_fields
        if _dotted(name, field) not in sections or _is_number_too(model, field)
    ]
    same = [k for k in everywhere if k.split(".")[-1] == word]
    same += [_dotted(name, keys[word]) for name, keys in RENAMED_KEYS.items() if word in keys and "*" not in name]
    if word in KEY_ALIASES:
        return KEY_ALIASES[word]
    if own[0] or (own[1] and not same):
        return [_dotted(section, own[1][0])]
    return same[:3] or get_close_matches(_dotted(place, word), everywhere, n=1)


def _is_number_too(model: type[BaseModel], field: str) -> bool:
    """Whether a key whose value can be a section can also be a plain number."""
    return not {int, float}.isdisjoint(get_args(model.model_fields[field].annotation))


def _dotted(*parts: Any) -> str:
    return ".".join(str(part) for part in parts if part != "")


def _without_numbers(section: str) -> str:
    """The section's name without positions in lists."""
    return ".".join(part for part in section.split(".") if not part.isdigit())


def shown(value: Any) -> str:
    """A value on one line of bounded length; text without quotes, as it was typed."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 100
    short.maxlevel = 2
    return "null" if value is None else short.repr(value)[1:-1] if isinstance(value, str) else short.repr(value)


def explain(error: Any, section: str, sections: dict[str, type[BaseModel]]) -> ConfigProblem:
    """One of pydantic's errors, which occurred in `section`."""
    path = (*filter(None, section.split(".")), *(part for part in error["loc"] if part != "[key]"))
    return ConfigProblem(path, _text(error, path, sections))


def _text(error: Any, path: tuple[Any, ...], sections: dict[str, type[BaseModel]]) -> str:
    """The message of one of pydantic's errors at a key."""
    *parents, last = path or ("",)
    section = _dotted(*parents)
    key, model = _dotted(section, last), sections.get(_without_numbers(section))
    if error["type"] == "extra_forbidden" and model is not None:
        if new := renamed_keys(_without_numbers(section)).get(last):
            return f"{key}: was renamed; use {_dotted(section, new)}"
        meant = _meant(str(last), section, sections)
        hint = f"did you mean {' or '.join(meant)}? " if meant else ""
        return f"{key}: unknown key; {hint}possible: {', '.join(model.model_fields)}"
    if error["type"] == "missing" and model is not None:
        description = model.model_fields[str(last)].description
        return f"{key}: is missing{f' ({description})' if description else ''}; give it in the file or as {key}=..."
    value = f"{key}={shown(error['input'])}" if key else shown(error["input"])
    if error["type"] == "model_type" and (inner := sections.get(_without_numbers(key))):
        return f"{value}: is a section, not a single value; its keys: {', '.join(inner.model_fields)}"
    if error["type"] == "literal_error":
        possible = re.findall("'([^']*)'", error["ctx"]["expected"])
        return f"{value}: {suggest(shown(error['input']), possible)}"
    message = error["msg"].removeprefix("Value error, ").split(", unable to")[0]
    return f"{value}: {message[0].lower() + message[1:]}"


def check(model: type[SectionT], values: dict[str, Any]) -> SectionT:
    """`values` as a section.

    Raises:
        ConfigError: with one line for every key at fault.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(e, "", {"": model}).text for e in error.errors())) from None


def find_entry(registry: Registry[T], name: str) -> T:
    """The object of a name that a user gave.

    Raises:
        ConfigError: an unknown name; the message has the possible ones.
    """
    if name not in registry:
        raise ConfigError(f"unknown {registry.kind} {name!r}; {suggest(name, registry.names())}")
    return registry[name]


def parse_options(model: type[SectionT], assignments: list[str]) -> dict[str, Any]:
    """Parse `["resolution=64", ...]` -> `{"resolution": 64, ...}`: what is given, validated as a section.

    Raises:
        ConfigError: unknown keys or invalid values; one line per problem.
    """
    values: dict[str, Any] = {}
    override(values, assignments)
    return check(model, values).model_dump(exclude_unset=True)


def plugin_problems(key: str, registry: Registry[Any], values: Any) -> list[ConfigProblem]:
    """Errors in the section `tasks` or `conditions`, whose settings the tasks' and conditions' own files declare."""
    if not isinstance(values, dict):
        what = f"expected a mapping of a {registry.kind}'s name to its settings; possible: {', '.join(registry)}"
        return [ConfigProblem((key,), f"{key}={shown(values)}: {what}")]
    problems, known = [], sections()
    for name, settings in values.items():
        path = f"{key}.{name}"
        if name not in registry:
            problems.append(
                ConfigProblem((key, name), f"{path}: unknown {registry.kind}; {suggest(str(name), registry.names())}")
            )
            continue
        try:
            registry[name].Settings.model_validate(settings)
        except ValidationError as error:
            problems += [explain(e, path, known) for e in error.errors()]
    return problems
