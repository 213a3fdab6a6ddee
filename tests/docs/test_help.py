"""What the command line says about itself: help that fits a screen, examples, exit statuses, colors, completion."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from helpers.documents import ROOT

from mtgen.cli import app
from mtgen.errors import ERROR_BY_STATUS

MTGEN = Path(sys.executable).with_name("mtgen")
COLOR = re.compile(r"\x1b\[[\d;]*3\d[\d;]*m")
SCREEN = 52
"""Lines of a terminal on a laptop's screen."""


def leaves(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its words."""
    for word, inner in getattr(command, "commands", {}).items():
        whole = f"{name} {word}".strip()
        if hasattr(inner, "commands"):
            yield from leaves(inner, whole)
        elif not inner.hidden:
            yield whole, inner


COMMANDS = dict(leaves(typer.main.get_command(app)))


def run(*words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", **variables}
    return subprocess.run([str(MTGEN), *words], capture_output=True, text=True, env=environment, timeout=120)


def on_a_terminal(*words: str, **variables: str) -> str:
    """What a command prints where its standard output is a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "80", **variables}
    process = subprocess.Popen([str(MTGEN), *words], stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 4096):
            said += part
    except OSError:
        pass  # Linux tells the end of a terminal so
    finally:
        os.close(ours)
        process.wait(timeout=60)
    return said.decode()


def test_help_fits_a_screen_of_80_columns() -> None:
    said = run("--help").stdout.splitlines()
    assert len(said) <= SCREEN and max(map(len, said)) <= 80


def test_help_has_every_command_on_one_line_under_what_a_person_wants() -> None:
    said = run("--help").stdout
    assert re.findall(r"╭─ ([^─]*) ─", said) == ["Options", "Prepare", "Train", "Inspect a run", "Use a run"]
    rows = [row[1] for row in re.finditer(r"^│ (.{11})", said.partition("Prepare")[2], re.MULTILINE)]
    assert sorted(row.strip() for row in rows) == sorted({name.split()[0] for name in COMMANDS})


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_by_an_example_of_its_own(name: str) -> None:
    said = COMMANDS[name].help
    assert re.search(rf"Examples?: .*`mtgen {name}\b", said, re.DOTALL), said


def test_every_exit_status_is_documented_once_and_in_the_help() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    documented = [int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)]
    assert documented == [0, *ERROR_BY_STATUS, 130]
    assert all(f"{status} " in run("--help").stdout.partition("Exit status:")[2] for status in (0, *ERROR_BY_STATUS))


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("configs list", 0),
        ("conflicts RUN", 1),
        ("train nothing-of-this-name", 2),
        ("train digits-32 --unknown", 2),
        ("shards validate .", 3),
        ("shards stats nowhere", 3),
        ("inspect nothing", 4),
    ],
)
def test_commands_end_with_the_documented_status_and_without_a_traceback(
    words: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run(*words.split())
    assert (ended.returncode, "Traceback" in ended.stderr) == (status, False), ended.stderr
    assert status == 0 or "rror" in ended.stderr


def _heeding() -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # tests that run in the background of a shell ignore it, and so would what they start


def test_ctrl_c_ends_with_130(tmp_path: Path) -> None:
    words = [str(MTGEN), "shards", "make", "shapes", str(tmp_path / "set"), "train=1000000"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, preexec_fn=_heeding
    )
    with process:
        while not list(tmp_path.rglob("*.part")):  # it has begun
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        try:
            said = process.communicate(timeout=60)[0].decode()
        finally:
            process.kill()
    assert (process.returncode, "Traceback" in said) == (130, False), said


@pytest.mark.parametrize("words", ["configs show digits-32", "configs list"])
def test_a_reader_that_went_away_ends_a_command_with_1_and_in_silence(words: str) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    ended = subprocess.run(
        [str(MTGEN), *words.split()],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    os.close(theirs)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_colors_are_for_terminals_and_can_be_switched_off() -> None:
    assert COLOR.search(on_a_terminal("--help"))
    assert not COLOR.search(on_a_terminal("--help", NO_COLOR="1"))
    assert not COLOR.search(run("--help").stdout)


def test_a_shell_completes_commands_once_completion_is_installed(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    installed = subprocess.run(
        ["bash", "-c", f'"{MTGEN}" --install-completion; true'], capture_output=True, text=True, env=environment
    )
    assert "completion installed" in installed.stdout, installed.stderr
    assert "mtgen" in (tmp_path / ".bashrc").read_text()
    given = {**environment, "_MTGEN_COMPLETE": "complete_bash", "COMP_WORDS": "mtgen tra", "COMP_CWORD": "1"}
    completed = subprocess.run([str(MTGEN)], capture_output=True, text=True, env=given)
    assert completed.stdout.split() == ["train", "translate"]


def test_numbers_can_be_had_as_json(tmp_path: Path) -> None:
    with_json = {
        name for name, command in COMMANDS.items() if any("--json" in option.opts for option in command.params)
    }
    looking = {
        "configs list",
        "plan",
        "doctor",
        "smoke",
        "shards validate",
        "shards stats",
        "train",
        "submit",
        "jobs list",
        "predict",
    }
    assert looking | {"inspect", "checkpoints list", "evaluate", "conflicts"} <= with_json
    assert '"digits-32"' in run("configs", "list", "--json", "-").stdout


@pytest.mark.parametrize(
    "option", [(name, o.opts[0]) for name, c in COMMANDS.items() for o in c.params if o.name.endswith("port")]
)
@pytest.mark.parametrize("port", ["-1", "70000"])
def test_a_port_that_cannot_be_is_refused_by_its_option(option: tuple[str, str], port: str) -> None:
    done = run(*option[0].split(), option[1], port)
    assert done.returncode == 2 and f"Invalid value for '{option[1]}'" in done.stderr, done.stderr
