"""Checkpoints are written beside training: one at a time, all of them in the end, and a failure is never lost."""

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
    made = CheckpointWriter(whole=lambda folder, seconds: None)
    yield made
    made.close()


def arguments(root: Path, images: int) -> tuple[Any, ...]:
    return root, images, {"ema": {"weight": torch.full((8,), float(images))}}, {"images": images}, "", Retention(9)


def slow_disk(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """A disk whose first fsync waits: (it waits, it may go on)."""
    waits, may = threading.Event(), threading.Event()
    fsync = os.fsync

    def late(descriptor: int) -> None:
        waits.set()
        may.wait()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", late)
    return waits, may


def test_training_goes_on_while_the_disk_is_slow(
    tmp_path: Path, writer: CheckpointWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, may = slow_disk(monkeypatch)
    writer.begin(*arguments(tmp_path, 100))
    waits.wait()
    assert writer.problem() is None and checkpoint.latest(tmp_path, warn=pytest.fail) is None
    may.set()
    assert writer.problem(wait=True) is None
    assert checkpoint.verify(tmp_path / f"{100:012d}").images == 100


def test_a_second_one_waits_for_the_first(
    tmp_path: Path, writer: CheckpointWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, may = slow_disk(monkeypatch)
    writer.begin(*arguments(tmp_path, 100))
    waits.wait()
    second = threading.Thread(target=writer.begin, args=arguments(tmp_path, 200))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    may.set()
    second.join()
    assert (tmp_path / f"{100:012d}").is_dir()
    assert writer.problem(wait=True) is None and (tmp_path / f"{200:012d}").is_dir()


def test_a_failure_is_told_and_nothing_is_written_after_it(tmp_path: Path, writer: CheckpointWriter) -> None:
    (tmp_path / "file").touch()
    writer.begin(*arguments(tmp_path / "file", 100))
    assert isinstance(writer.problem(wait=True), CheckpointError)
    writer.begin(*arguments(tmp_path, 200))
    problem = writer.problem()
    assert "make room" in str(problem) and not (tmp_path / f"{200:012d}").exists()


def test_an_error_that_is_not_the_users_is_raised(tmp_path: Path, writer: CheckpointWriter) -> None:
    root, images, tensors, _, config, keep = arguments(tmp_path, 100)
    writer.begin(root, images, tensors, {"images": object()}, config, keep)
    with pytest.raises(TypeError):
        writer.problem(wait=True)
