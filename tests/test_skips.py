"""A test that is skipped is named with its reason; under CI, one that `.ci/run` could have let run has failed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SUITE = """
import pytest
from helpers.prerequisites import needs, preventable

@needs("a-program-that-nobody-has", "a-package")
def test_by_a_mark(): pass

@needs("sh", "dash")
def test_that_runs(): pass

@pytest.fixture
def server(): pytest.skip(preventable("no server here", "apt-get install server"))

def test_by_a_fixture(server): pass

@pytest.mark.parametrize("size", [1, 2])
def test_by_the_machine(size): pytest.skip("no GPU here")

@pytest.mark.xfail(reason="known", strict=True)
def test_that_fails_as_expected(): assert False
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A folder of tests that has this project's conftest."""
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "test_suite.py").write_text(SUITE, encoding="utf-8")
    return tmp_path


def ran(suite: Path, ci: str, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(TESTS), "COLUMNS": "200"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
        "--rootdir",
        str(suite),
    ]
    words = (*command, *words, str(suite))
    return subprocess.run(words, env=environment, cwd=suite, capture_output=True, text=True, timeout=300, check=False)


def test_skips_are_grouped_by_reason_at_the_end(suite: Path) -> None:
    done = ran(suite, "")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "2 skipped: no GPU here: test_suite.py (2)" in lines
    assert "1 skipped: no server here (preventable: apt-get install server): test_suite.py (1)" in lines
    assert (
        "1 skipped: no a-program-that-nobody-has here (preventable: apt-get install a-package): test_suite.py (1)"
        in lines
    )
    assert "1 passed, 4 skipped, 1 xfailed" in lines[-1]


def test_under_ci_a_preventable_skip_fails_and_others_stay_skips_with_workers_too(suite: Path) -> None:
    done = ran(suite, "true", "-n", "2")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "skipped under CI: no server here (preventable: apt-get install server)" in done.stdout
    assert "2 skipped: no GPU here: test_suite.py (2)" in done.stdout.splitlines()
    assert "1 passed, 2 skipped, 1 xfailed, 2 errors" in done.stdout.splitlines()[-1]


def test_a_whole_file_that_is_skipped_for_a_preventable_reason_fails_too(suite: Path) -> None:
    skip = 'pytest.skip(preventable("no x", "make x"), allow_module_level=True)'
    text = f"import pytest\nfrom helpers.prerequisites import preventable\n{skip}\n"
    (suite / "test_whole.py").write_text(text, encoding="utf-8")
    done = ran(suite, "true")
    assert done.returncode != 0 and "skipped under CI: no x (preventable: make x)" in done.stdout
