"""Registries: what is dropped into a package is found, by one thread and by several at once."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mtgen.registry import Registry

SLOW = """
import time
time.sleep(0.3)
from {package} import THINGS
assert THINGS.names() == {before}
THINGS.register({name!r})(1)
"""
"""A module that asks the registry while it is being imported, and registers late."""


@pytest.fixture
def things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[int]]:
    """A registry over a package of two modules, not loaded yet."""
    package = "package_of_things"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(
        f"from mtgen.registry import Registry\nTHINGS = Registry('thing', {package!r})\n"
    )
    (tmp_path / package / "a.py").write_text(SLOW.format(package=package, before=[], name="first"))
    (tmp_path / package / "b.py").write_text(SLOW.format(package=package, before=["first"], name="second"))
    monkeypatch.syspath_prepend(str(tmp_path))
    module = __import__(package)
    yield module.THINGS
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


def test_all_threads_find_all_names(things: Registry[int]) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: things.names(), range(4)))
    assert found == [["first", "second"]] * 4


def test_an_unknown_name_is_told_with_the_possible_ones(things: Registry[int]) -> None:
    assert things["first"] == 1
    with pytest.raises(KeyError, match=r"unknown thing 'secnod'; did you mean 'second'\? possible: first, second"):
        things["secnod"]


def test_two_of_one_name_are_refused(things: Registry[int]) -> None:
    assert "second" in things
    with pytest.raises(ValueError, match="two things are named 'second'"):
        things.register("second")(2)
