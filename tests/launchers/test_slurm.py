"""A Slurm job whose nodes cannot be started ends at once and names the log with the reason."""

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtgen.config import Config
from mtgen.errors import TrainingError
from mtgen.launchers import slurm
from mtgen.launchers.ray_node import own_address


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = Config.model_validate({"name": "run", "runs": str(tmp_path / "runs"), "data": {"path": "data"}})
    config.folder.mkdir(parents=True)
    return config


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of a job on one node; returns a folder in front of PATH for the programs that it starts."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_ON_NODE": "1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):  # put back afterwards
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return programs


def program(path: Path, *lines: str) -> None:
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)


def test_an_srun_that_fails_is_named_with_its_log(job: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    program(job / "srun", "echo invalid partition", "exit 3")
    program(job / "scancel", "exit 0")
    monkeypatch.setattr(slurm, "JOIN_TIMEOUT_SECONDS", 10.0)
    said = r"srun ended with status 3 before all nodes had joined .*see .*slurm-7-ray\.log"
    with pytest.raises(TrainingError, match=said), slurm.allocation(config, print):
        pytest.fail("there are no nodes")
    assert "invalid partition" in (config.folder / "slurm-7-ray.log").read_text()


def test_an_srun_that_ends_after_the_head_has_answered_is_named_too(
    job: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = socket.create_server((own_address(), 0))
    monkeypatch.setenv("RAY_ADDRESS", f"{own_address()}:{head.getsockname()[1]}")
    monkeypatch.setattr(slurm, "JOIN_TIMEOUT_SECONDS", 60.0)

    def answer_once() -> None:
        with head:
            head.accept()[0].close()

    threading.Thread(target=answer_once, daemon=True).start()
    with subprocess.Popen(["true"]) as step, pytest.raises(TrainingError, match="srun ended with status 0"):
        slurm._wait_for_nodes(config, 1, step, config.folder / "log")


@pytest.fixture
def warnings() -> Iterator[slurm.SlurmWarnings]:
    earlier = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    yield slurm.SlurmWarnings()
    for number, handler in earlier.items():
        signal.signal(number, handler)


def test_a_warning_while_the_run_is_prepared_stops_it_before_it_trains(
    warnings: slurm.SlurmWarnings, tmp_path: Path
) -> None:
    from helpers import toy

    from mtgen.launchers.driver import launch
    from mtgen.shards.make import make

    make("shapes", tmp_path / "data", resolution=16, train=60, test=20)
    started: list[int] = []

    def train(images: int) -> str:
        def say(text: str) -> None:
            if "resuming run" in text:
                os.kill(os.getpid(), signal.SIGUSR1)

        config = toy.small_run(
            tmp_path, "run", train={"images": images}, checkpoint={"every": 48}, evaluate={"every": 10**9}
        )
        outcome = launch(config, lambda folder, start, alive: started.append(start), say, asked=lambda: warnings.heard)
        return f"{outcome.status} at {outcome.images}"

    assert train(48) == "finished at 48"
    assert train(96) == "stopped at 48" and started == [0]
    assert not (tmp_path / "runs/run/stop").exists()
