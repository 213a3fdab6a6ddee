"""`mtgen --version` is one line, before anything heavy is loaded."""

import subprocess
import sys

import pytest

from mtgen.version import __version__


@pytest.mark.parametrize("words", [("--version",), ("--version", "train")])
def test_the_version_is_one_line(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mtgen", *words], capture_output=True, text=True, check=True, timeout=60
    )
    assert (done.stdout, done.stderr) == (f"mtgen {__version__}\n", "")


def test_help_names_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mtgen", "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    assert "--version" in done.stdout and "labeled images" in done.stdout
