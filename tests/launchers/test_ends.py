"""The end of a training is reported correctly, even if the run's folder cannot be written."""

import errno
import os
import signal
from pathlib import Path

import pytest
import ray.exceptions
from ray.train import WorkerGroupError

from mtgen.config import Config
from mtgen.launchers.driver import StopRequests
from mtgen.launchers.ray_workers import failure_reason
from mtgen.training.protocol import OUTCOME_FILE, Outcome

FAILED = Outcome("failed", 320, "the checkpoint cannot be written", 4)


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on a full disk, on which an outcome was written before."""
    FAILED.write(tmp_path)

    def refuse(self: Path, *arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("write_text", "touch", "unlink"):
        monkeypatch.setattr(Path, name, refuse)
    return tmp_path


def test_an_outcome_is_read_as_it_was_written_and_leaves_no_other_file(tmp_path: Path) -> None:
    FAILED.write(tmp_path)
    assert Outcome.read(tmp_path) == FAILED and [path.name for path in tmp_path.iterdir()] == [OUTCOME_FILE]


def test_an_outcome_that_does_not_fit_on_a_full_disk_is_printed(full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Outcome("failed", 640, "no room for a checkpoint", 4).write(full)
    said = capsys.readouterr().out
    assert "No space left on device" in said and "Training failed: no room for a checkpoint" in said
    assert Outcome.read(full) == FAILED, "a partial outcome was written"


def test_a_stop_request_that_cannot_be_written_interrupts_immediately(full: Path) -> None:
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda self, missing_ok: None)
        stop = StopRequests(full, said.append)
    try:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        stop.end()
    assert len(said) == 1 and "stopping immediately" in said[0] and "No space left on device" in said[0]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config.model_validate(
        {"name": "run", "runs": str(tmp_path), "data": {"path": "data"}, "train": {"max_restarts": 2}}
    )


def test_lost_workers_are_counted(config: Config) -> None:
    error = WorkerGroupError("rank 0 failed", {0: ValueError("could not create a primitive")})
    assert "the workers were lost 3 times in 360 minutes without a new checkpoint (train.max_restarts, " in str(
        failure_reason(config, error)
    )


def test_a_lost_cluster_is_not_reported_as_lost_workers(config: Config) -> None:
    said = str(failure_reason(config, ray.exceptions.ActorUnavailableError("the head is gone", b"0" * 16)))
    assert "the Ray cluster, or the node of this process, was lost" in said and "train.max_restarts" not in said
    assert "Run the same command again" in said
