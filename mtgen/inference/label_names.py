"""Classes and domains as a user names them."""

from mtgen.config import Config
from mtgen.errors import ConfigError
from mtgen.registry import suggest
from mtgen.schema import DatasetCard


def parse_class(text: str, card: DatasetCard) -> int:
    """A class's number, given as its name, in any case, or as its number.

    Raises:
        ConfigError: there is no such class; the nearest name is suggested.
    """
    if not card.classes:
        raise ConfigError(f"class {text!r}: data set {card.name!r} names no classes; ask for samples without a class")
    found = _number(text, card.classes)
    if found is not None:
        return found
    last = len(card.classes) - 1
    hint = suggest(text.strip().lower(), card.classes)
    raise ConfigError(f"class {text!r}: data set {card.name!r} has no such class; {hint}, or 0 to {last}")


def parse_classes(text: str, card: DatasetCard) -> list[int]:
    """One class, or several that are to be in one image, joined by `+` ("dog+person"); a name that holds a `+` goes before.

    Raises:
        ConfigError: as `parse_class`.
    """
    if "+" not in text or _number(text, card.classes) is not None:
        return [parse_class(text, card)]
    return sorted({parse_class(part, card) for part in text.split("+")})


def domain_names(config: Config) -> list[str]:
    """What a run's domains are called, by number: the last part of the paths of its data sets; whole paths where two end alike."""
    paths = [share.path.rstrip("/") for share in config.data.mixture] or [str(config.data.path).rstrip("/")]
    names = [path.rpartition("/")[2] for path in paths]
    return names if len(set(names)) == len(names) else paths


def parse_domain(text: str, config: Config) -> int:
    """A domain's number, given as the name of its data set, in any case, or as its number.

    Raises:
        ConfigError: there is no such domain; the nearest name is suggested.
    """
    names = domain_names(config)
    found = _number(text, names)
    if found is None:
        hint = suggest(text.strip().lower(), names)
        raise ConfigError(
            f"domain {text!r}: the run has no such domain; {hint}, or 0 to {len(names) - 1} (the data sets in data.mixture)"
        )
    return found


def _number(text: str, names: list[str]) -> int | None:
    known = {name.lower(): number for number, name in reversed(list(enumerate(names)))}
    wanted = text.strip().lower()
    if wanted in known:
        return known[wanted]
    return int(wanted) if wanted.isascii() and wanted.isdigit() and int(wanted) < len(names) else None
