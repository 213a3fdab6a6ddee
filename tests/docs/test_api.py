"""Everything public has a docstring, and the pages made of them build without a warning."""

import importlib
import inspect
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers.documents import ROOT

PROGRAM = ROOT / "docs/build_api.py"
MODULES = runpy.run_path(str(PROGRAM))["MODULES"]


def public(module: ModuleType) -> Iterator[tuple[str, Any, type | None]]:
    """Name, object and class of each public function, class, method and property that a module defines itself."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            yield name, value, None
        if inspect.isclass(value):
            yield from members(name, value)


def is_lambda(value: Any) -> bool:
    """Whether it is a field's default rather than a method."""
    return getattr(value, "__name__", "") == "<lambda>"


def members(owner: str, kind: type) -> Iterator[tuple[str, Any, type | None]]:
    for name, value in vars(kind).items():
        value = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if (
            not name.startswith("_")
            and (inspect.isfunction(value) or isinstance(value, property | cached_property))
            and not is_lambda(value)
        ):
            yield f"{owner}.{name}", value, kind


def documented(name: str, value: Any, kind: type | None) -> bool:
    """Whether it has a docstring, or overrides a method of mtgen that has one."""
    if inspect.isclass(value):
        return bool(vars(value).get("__doc__")) and not vars(value)["__doc__"].startswith(
            f"{value.__name__}("
        )  # a dataclass's own
    if value.__doc__ or kind is None:
        return bool(value.__doc__)
    bases = [base for base in kind.__mro__[1:] if base.__module__.startswith("mtgen")]
    return any(getattr(vars(base).get(name.rpartition(".")[2]), "__doc__", None) for base in bases)


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    missing = [what for what, value, kind in public(module) if not documented(what, value, kind)]
    assert module.__doc__ or not Path(str(module.__file__)).read_text(), f"{name} has none itself"
    assert not missing, f"{name}: {missing}"


def test_the_pages_are_built_without_a_warning(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert built.returncode == 0 and "Warn" not in built.stderr, built.stderr
    pages = {str(path.relative_to(tmp_path).with_suffix("")).replace("/", ".") for path in tmp_path.rglob("*.html")}
    assert {"mtgen", *MODULES} <= pages
    assert "Hand shared tensors to K tasks" in (tmp_path / "mtgen/balancing/gate.html").read_text(encoding="utf-8")
