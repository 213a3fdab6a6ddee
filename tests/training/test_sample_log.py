"""The sample log tells which positions the parameters have learned from, whatever was killed in between."""

import os
from pathlib import Path

import pytest
import torch

from mtgen.errors import TrainingError
from mtgen.training.sample_log import SAMPLE_LOG_FOLDER, SampleLog, history, next_segment, read_segments


def trained(folder: Path, world: int, begin: int, end: int) -> None:
    """The workers of a segment that begins at `begin`, and makes steps over four samples up to `end`."""
    segment, size = next_segment(folder), 4 // world
    for rank, log in enumerate([SampleLog(folder, segment, rank, begin) for rank in range(world)]):
        for start in range(begin, end, 4):
            log.step(torch.arange(start + rank * size, start + (rank + 1) * size))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def test_steps_beyond_the_checkpoint_that_a_segment_resumes_from_are_undone(run: Path) -> None:
    trained(run, 2, 0, 12)
    trained(run, 1, 8, 20)  # from a checkpoint at 8, with one worker less
    assert [segment.begin for segment in read_segments(run)] == [0, 8]
    assert history(run) == list(range(20))


def test_a_gap_and_a_repetition_are_seen(run: Path) -> None:
    trained(run, 1, 0, 8)
    trained(run, 1, 12, 16)
    assert history(run) == [*range(8), *range(12, 16)]
    (run / SAMPLE_LOG_FOLDER / "000001-1.jsonl").write_bytes((run / SAMPLE_LOG_FOLDER / "000001-0.jsonl").read_bytes())
    assert history(run) == [*range(8), *sorted([*range(12, 16)] * 2)]


def test_an_incomplete_line_of_a_killed_worker_is_not_a_step(run: Path) -> None:
    trained(run, 1, 0, 8)
    path = run / SAMPLE_LOG_FOLDER / "000000-0.jsonl"
    os.truncate(path, path.stat().st_size - 3)
    assert history(run) == list(range(4))


def test_a_log_that_cannot_be_created_is_an_error(run: Path) -> None:
    (run / SAMPLE_LOG_FOLDER).write_text("not a folder")
    with pytest.raises(TrainingError, match=r"cannot be written .*train.log_samples=false"):
        trained(run, 1, 0, 4)


def test_a_run_without_a_log_has_no_history(run: Path) -> None:
    assert read_segments(run) == [] and history(run) == []
