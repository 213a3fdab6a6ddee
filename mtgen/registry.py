"""Registries: a file added to a package registers its objects, and nothing else has to change."""

import importlib
import importlib.util
import pkgutil
import re
import threading
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def suggest(name: str, possible: "list[str]") -> str:
    """The end of an error message: the nearest possible name, if one is near, and all possible names."""
    near = get_close_matches(name, possible, n=1, cutoff=0.6) or get_close_matches(
        name.lower(), possible, n=1, cutoff=0.6
    )
    meant = f"did you mean {near[0]!r}? " if near else ""
    return f"{meant}possible: {', '.join(possible)}"


def find_path(path: str) -> str | None:
    """A dotted path (`module.Name`, `package.module:Name`) or `FILE.py:Name`, in a form that every process can load.

    A module that is a file in the current folder becomes that file's absolute path, since workers run in other folders.
    Nothing is imported: reading a configuration must not run code.

    Returns:
        The path, or `None` if the text is not one.
    """
    module, colon, name = path.rpartition(":") if ":" in path else path.rpartition(".")
    if not module or not re.fullmatch(r"[A-Za-z_]\w*", name):
        return None
    file = Path(module) if module.endswith(".py") else Path(*module.split(".")).with_suffix(".py")
    if file.is_file():
        return f"{file.absolute()}:{name}"
    if module.endswith(".py"):
        return path if file.is_absolute() else None
    return path if all(part.isidentifier() for part in module.split(".")) else None


def by_path(path: str) -> Any:
    """Import the object of a path that `find_path` returned.

    Raises:
        ImportError, AttributeError, OSError, SyntaxError: it does not exist, or its file fails to run.
    """
    module, colon, name = path.rpartition(":") if ":" in path else path.rpartition(".")
    if not module.endswith(".py"):
        return getattr(importlib.import_module(module), name)
    spec = importlib.util.spec_from_file_location(Path(module).stem, module)
    if spec is None or spec.loader is None:
        raise ImportError(f"{module} is not a Python file")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return getattr(loaded, name)


class Registry(Generic[T]):
    """Names -> objects of one kind, filled by the modules of `package` when the first name is looked up.

    Args:
        kind: singular noun for its objects, for messages ("task").
        package: dotted name of the package whose modules register themselves.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, T] = {}
        self._loaded = False
        self._loading = threading.RLock()

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: register the decorated object under `name`."""

        def keep(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"two {self.kind}s are named {name!r}")
            self._entries[name] = entry
            return entry

        return keep

    def _load(self) -> None:
        # Another thread waits for all names; a module that looks a name up while it is imported finds those so far.
        with self._loading:
            if self._loaded:
                return
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
        """The object of that name; `KeyError` with the possible names if there is none."""
        self._load()
        if name not in self._entries:
            raise KeyError(f"unknown {self.kind} {name!r}; {suggest(name, self.names())}")
        return self._entries[name]
