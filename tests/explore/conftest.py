"""A run with nearly all tasks and conditions, and the command that serves its page, in its own process."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.made_models import CONDITIONS, TASKS, made, saved

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = made(tasks=(*TASKS, "translation"), conditions=CONDITIONS, translation={"side": 4, "domain": "class"})
    return saved(model, tmp_path_factory.mktemp("runs") / "test")


@pytest.fixture(scope="session")
def serving() -> Callable[[Path], object]:
    """`with serving(run) as (process, port)`: the command's process, and the port that it printed."""

    @contextmanager
    def serve(run: Path) -> Iterator[tuple["subprocess.Popen[str]", int]]:
        command = [
            sys.executable,
            "-m",
            "mtgen.cli",
            "explore",
            str(run),
            "--port",
            "0",
            "--device",
            "cpu",
            "--no-open",
        ]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"}, **pipes)  # type: ignore[call-overload]
        try:
            address = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
            assert address, process.stderr.read()
            yield process, int(address[1])
        finally:
            process.kill()
            process.communicate()

    return serve


@pytest.fixture(scope="session")
def port(run: Path, serving: Callable[[Path], object]) -> Iterator[int]:
    with serving(run) as (_, port):  # type: ignore[attr-defined]
        yield port
