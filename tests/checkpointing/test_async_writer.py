"""Checkpoints are written in the background, one at a time; none is skipped and no failure is lost."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mtgen.checkpointing import checkpoint
from mtgen.checkpointing.async_writer import CheckpointWriter
from mtgen.checkpointing.retention import Retention
from mtgen.errors import CheckpointError


@pytest.fixture
def writer() -> Iterator[CheckpointWriter]:
    writer = CheckpointWriter(on_written=lambda folder, seconds: None)
    yield writer
    writer.close()


def arguments(root: Path, images: int) -> tuple[Any, ...]:
    return root, images, {"ema": {"weight": torch.full((8,), float(images))}}, {"images": images}, "", Retention(9)


def slow_disk(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Make fsync block; returns the events "it is blocked" and "it may continue"."""
    blocked, released = threading.Event(), threading.Event()
    fsync = os.fsync

    def slow_fsync(descriptor: int) -> None:
        blocked.set()
        released.wait()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow_fsync)
    return blocked, released


def test_training_continues_while_the_disk_is_slow(
    tmp_path: Path, writer: CheckpointWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked, released = slow_disk(monkeypatch)
    writer.begin(*arguments(tmp_path, 100))
    blocked.wait()
    assert writer.problem() is None and checkpoint.latest(tmp_path, warn=pytest.fail) is None
    released.set()
    assert writer.problem(wait=True) is None
    assert checkpoint.verify(tmp_path / f"{100:012d}").images == 100


def test_a_second_checkpoint_waits_for_the_first(
    tmp_path: Path, writer: CheckpointWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked, released = slow_disk(monkeypatch)
    writer.begin(*arguments(tmp_path, 100))
    blocked.wait()
    second = threading.Thread(target=writer.begin, args=arguments(tmp_path, 200))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    released.set()
    second.join()
    assert (tmp_path / f"{100:012d}").is_dir()
    assert writer.problem(wait=True) is None and (tmp_path / f"{200:012d}").is_dir()


def test_a_failure_is_reported_and_nothing_is_written_after_it(tmp_path: Path, writer: CheckpointWriter) -> None:
    (tmp_path / "file").touch()
    writer.begin(*arguments(tmp_path / "file", 100))
    assert isinstance(writer.problem(wait=True), CheckpointError)
    writer.begin(*arguments(tmp_path, 200))
    problem = writer.problem()
    assert "free disk space" in str(problem) and not (tmp_path / f"{200:012d}").exists()


def test_other_errors_than_the_users_are_raised(tmp_path: Path, writer: CheckpointWriter) -> None:
    root, images, tensors, _, config, keep = arguments(tmp_path, 100)
    writer.begin(root, images, tensors, {"images": object()}, config, keep)
    with pytest.raises(TypeError):
        writer.problem(wait=True)
