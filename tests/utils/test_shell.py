"""Commands in messages can be copied into a shell, whatever the names in them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgen.cli import train
from mtgen.launchers import driver
from mtgen.shards.make import make
from mtgen.training.protocol import Outcome
from mtgen.utils.shell import shell_command

MTGEN = Path(sys.executable).with_name("mtgen")
ODD = "it's an odd {name}"


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"]))))
def test_a_shell_parses_the_original_words(words: list[str]) -> None:
    assert shlex.split(shell_command("mtgen train", *words)) == ["mtgen", "train", *words]


def said_next(text: str) -> list[list[str]]:
    """The words of each command that a message suggests next."""
    line = next(line for line in text.splitlines() if re.search("next: |To resume: ", line, re.IGNORECASE))
    commands = re.split("(?i)next: |To resume: ", line)[1]
    return [shlex.split(command) for command in commands.split("; ") if command.startswith(("mtgen", "sbatch"))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    make("shapes", folder / ODD, resolution=16, train=20, test=20)
    return folder


SLURM = ["slurm", "demo", f"runs={ODD}", "name=n", "--out", f"{ODD}.sbatch"]


@pytest.mark.parametrize(
    ("words", "next_words"),
    [
        (["configs", "copy", "demo", "--out", f"{ODD}.yaml"], [["mtgen", "train", f"{ODD}.yaml"]]),
        (["shards", "validate", ODD], [["mtgen", "train", "CONFIG", f"data.path={ODD}", "--dry-run"]]),
        (
            ["shards", "make", "shapes", f"{ODD} 2", "train=2", "test=2"],
            [["mtgen", "shards", "validate", f"{ODD} 2"], ["mtgen", "shards", "view", f"{ODD} 2"]],
        ),
        (SLURM, [["sbatch", f"{ODD}.sbatch"]]),
    ],
    ids=lambda words: words[0] if isinstance(words[0], str) else "",
)
def test_the_suggested_command_can_be_copied(words: list[str], next_words: list[list[str]], place: Path) -> None:
    done = subprocess.run(
        [str(MTGEN), *words],
        capture_output=True,
        text=True,
        cwd=place,
        timeout=300,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert done.returncode == 0, done.stderr
    assert said_next(done.stdout) == next_words


def test_a_stopped_run_resumes_with_the_command_that_it_suggests(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(driver, "train_with_progress", lambda *arguments, **named: Outcome("stopped", 5))
    words: list[Any] = [place / f"{ODD}.yaml", ["data.keep_labels={mask: 0.1}", f"data.path={place / ODD}"]]
    words[0].write_text("name: n\n")
    train.train(*words, samples=None)
    assert said_next(capsys.readouterr().out) == [["mtgen", "train", str(words[0]), *words[1]]]
