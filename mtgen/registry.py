"""Registries: a file that is dropped into a package registers what it holds, and nothing else needs a change."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Generic, TypeVar

T = TypeVar("T")


def suggest(name: str, possible: "list[str]") -> str:
    """The end of an error message: the nearest right name, if one is near, and all that are possible."""
    near = get_close_matches(name, possible, n=1, cutoff=0.6)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return f"{meant}possible: {', '.join(possible)}"


class Registry(Generic[T]):
    """Names -> objects of one kind, filled by the modules of `package` when the first name is looked up.

    Args:
        kind: what it holds, in the singular, for messages ("task").
        package: dotted name of the package whose modules register themselves.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._entries: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: keep the decorated object under `name`."""

        def keep(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"two {self.kind}s are named {name!r}")
            self._entries[name] = entry
            return entry

        return keep

    def _load(self) -> None:
        if not self._loaded:
            self._loaded = True
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__, self.package + "."):
                importlib.import_module(module.name)

    def names(self) -> list[str]:
        """All names, in alphabetical order."""
        self._load()
        return sorted(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __getitem__(self, name: str) -> T:
        """The object called `name`; `KeyError` with the possible names where there is none."""
        self._load()
        if name not in self._entries:
            raise KeyError(f"unknown {self.kind} {name!r}; {suggest(name, self.names())}")
        return self._entries[name]
