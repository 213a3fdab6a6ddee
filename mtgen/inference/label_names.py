"""Classes and domains by the names that users give."""

from mtgen.config import Config
from mtgen.errors import ConfigError
from mtgen.registry import suggest
from mtgen.schema import DatasetCard


def parse_class(text: str, card: DatasetCard) -> int:
    """Number of a class that is given by name (case-insensitive) or by number.

    Raises:
        ConfigError: the class does not exist; suggests the nearest name.
    """
    if not card.classes:
        raise ConfigError(f"class {text!r}: data set {card.name!r} has no classes; sample without a class")
    found = _number(text, card.classes)
    if found is not None:
        return found
    last = len(card.classes) - 1
    hint = suggest(text.strip().lower(), card.classes)
    raise ConfigError(f"class {text!r}: is not a class of data set {card.name!r}; {hint}, or 0 to {last}")


def parse_classes(text: str, card: DatasetCard) -> list[int]:
    """Numbers of one class, or of several for one image, joined by `+` ("dog+person").

    A class whose own name contains a `+` takes precedence.

    Raises:
        ConfigError: as `parse_class`.
    """
    if "+" not in text or _number(text, card.classes) is not None:
        return [parse_class(text, card)]
    return sorted({parse_class(part, card) for part in text.split("+")})


def domain_names(config: Config) -> list[str]:
    """Names of a run's domains: the last component of each data set's path, or whole paths if those are not unique."""
    paths = [share.path.rstrip("/") for share in config.data.mixture] or [str(config.data.path).rstrip("/")]
    names = [path.rpartition("/")[2] for path in paths]
    return names if len(set(names)) == len(names) else paths


def parse_domain(text: str, config: Config) -> int:
    """Number of a domain that is given by the name of its data set (case-insensitive) or by number.

    Raises:
        ConfigError: the domain does not exist; suggests the nearest name.
    """
    names = domain_names(config)
    found = _number(text, names)
    if found is None:
        hint = suggest(text.strip().lower(), names)
        raise ConfigError(
            f"domain {text!r}: is not a domain of the run; {hint}, "
            f"or 0 to {len(names) - 1} (the data sets in data.mixture)"
        )
    return found


def _number(text: str, names: list[str]) -> int | None:
    """Number of a name, exact or in another case; `ConfigError` if several have it."""
    wanted = text.strip().lower()
    exact = [number for number, name in enumerate(names) if name == text.strip()]
    found = exact or [number for number, name in enumerate(names) if name.lower() == wanted]
    if len(found) > 1:
        numbers = " and ".join(map(str, found))
        raise ConfigError(f"{text!r}: is the name of {len(found)} of them, {numbers}; give the number")
    if found:
        return found[0]
    return int(wanted) if wanted.isascii() and wanted.isdigit() and int(wanted) < len(names) else None
