"""The journal of a run: rows are read back as written, whatever is killed and when."""

import math
import os
import resource
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgen.errors import UserError
from mtgen.tracking.journal import Journal, JournalReader, read_journal

NAMES = st.text("abcdefg/_ 0123", min_size=1, max_size=12)
FINITE = st.dictionaries(NAMES, st.floats(allow_nan=False, allow_infinity=False), max_size=5)


def images_of(folder: Path) -> list[int]:
    return [row.images for row in read_journal(folder)]


@given(st.lists(FINITE, max_size=8))
def test_values_are_read_back_as_they_were_written(rows: list[dict[str, float]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(folder)
        for number, values in enumerate(rows):
            journal.row(number, values)
        assert [(row.images, row.values) for row in read_journal(folder)] == list(enumerate(rows))


@given(st.lists(st.integers(0, 50), max_size=12).map(sorted), st.integers(0, 50))
def test_rewind_leaves_exactly_the_rows_up_to_the_position(images: list[int], position: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(folder)
        for number in images:
            journal.row(number, {"loss/d": 1.0})
        journal.rewind(position)
        journal.row(position + 1, {"loss/d": 2.0})
        assert images_of(Path(folder)) == [number for number in images if number <= position] + [position + 1]


def test_rewind_returns_evaluations_of_checkpoints_up_to_the_position_and_nothing_else(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for images, name in ((1, "loss/d"), (1, "evaluation/a"), (3, "loss/d"), (2, "evaluation/b"), (3, "evaluation/c")):
        journal.row(images, {name: 0.5})
    lost = journal.rewind(2)
    assert [(row.images, row.values) for row in lost] == [(2, {"evaluation/b": 0.5})]
    assert [list(row.values) for row in read_journal(tmp_path)] == [["loss/d"], ["evaluation/a"]]


@given(st.binary(max_size=40).filter(lambda rest: not rest.endswith(b"\n")))
def test_a_partial_last_line_is_removed_when_the_journal_is_opened(rest: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Journal(folder).row(1, {"loss/d": 1.0})
        path = Path(folder) / "metrics.jsonl"
        whole = path.read_bytes()
        path.write_bytes(whole + rest.replace(b"\n", b" "))
        Journal(folder)
        assert path.read_bytes() == whole


def test_a_partial_row_of_any_length_is_removed_before_the_next_row(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.row(1, {"loss/d": 1.0})
    first = journal.path.stat().st_size
    journal.row(2, {"loss/d": 2.0})
    whole = journal.path.read_bytes()
    for length in range(first, len(whole)):
        journal.path.write_bytes(whole[:length])
        Journal(tmp_path).row(3, {"loss/d": 3.0})
        assert images_of(tmp_path) == [1, 3]


def test_a_reader_skips_a_line_that_is_still_being_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.row(1, {"loss/d": 1.0})
    with open(journal.path, "ab") as file:
        file.write(b'{"images": 2, "time": 1.0')
    assert images_of(tmp_path) == [1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_counted_and_left_out(tmp_path: Path, value: float) -> None:
    journal = Journal(tmp_path)
    journal.row(1, {"loss/d": value, "loss/g": 0.5})
    journal.row(2, {"loss/d": 0.25})
    journal.row(3, {"loss/d": value})
    assert [row.values for row in read_journal(tmp_path)] == [
        {"loss/g": 0.5, "loss/d/nonfinite": 1.0},
        {"loss/d": 0.25},
        {"loss/d/nonfinite": 2.0},
    ]


def test_the_count_of_non_finite_values_continues_after_a_rewind(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for images in (1, 2, 3):
        journal.row(images, {"loss/d": math.nan})
    resumed = Journal(tmp_path)
    resumed.rewind(2)
    resumed.row(3, {"loss/d": math.nan})
    assert [row.values["loss/d/nonfinite"] for row in read_journal(tmp_path)] == [1.0, 2.0, 3.0]


def test_a_damaged_line_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.row(1, {"loss/d": 1.0})
    with open(journal.path, "ab") as file:
        file.write(b"\x00\x00\x00\n")
    journal.row(2, {"loss/d": 2.0})
    with pytest.warns(UserWarning, match="byte 5[0-9] is damaged"):
        assert images_of(tmp_path) == [1, 2]


def test_a_full_disk_stops_nothing_and_loses_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.row(1, {"loss/d": 1.0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + 20, hard))  # room for part of a row
        with pytest.warns(UserWarning, match="not written yet"):
            journal.row(2, {"loss/d": 2.0})
            journal.row(3, {"loss/d": 3.0})
        assert images_of(tmp_path) == [1]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.row(4, {"loss/d": 4.0})
    assert images_of(tmp_path) == [1, 2, 3, 4]


def test_a_journal_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match=r"runs/digits/metrics.jsonl: cannot be written \(Not a directory\)"):
        Journal(tmp_path / "runs" / "digits")


def test_the_path_of_an_artifact_inside_the_run_is_relative(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run")
    journal.artifact(1, tmp_path / "run" / "samples" / "1.png", "samples")
    journal.artifact(1, tmp_path / "other.png")
    assert [row.artifact for row in read_journal(tmp_path / "run")] == [
        {"path": "samples/1.png", "to": "samples"},
        {"path": str(tmp_path / "other.png"), "to": ""},
    ]


def test_a_reader_returns_each_new_row_once(tmp_path: Path) -> None:
    reader = JournalReader(tmp_path)
    assert reader.new() == []
    journal = Journal(tmp_path)
    journal.row(1, {})
    journal.row(2, {})
    assert [row.images for row in reader.new()] == [1, 2]
    journal.row(3, {})
    assert [row.images for row in reader.new()] == [3]
    assert reader.new() == []


def test_a_reader_of_a_resumed_run_returns_the_rows_after_the_cut(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(0, start={"id": "first"})
    for images in (1, 2, 3):
        journal.row(images, {})
    reader = JournalReader(tmp_path)
    journal.rewind(2)
    journal.append(2, start={"id": "second"})
    journal.row(3, {})
    assert [row.images for row in reader.new()] == [2, 3]


def test_a_process_that_still_reads_is_not_disturbed_by_a_rewind(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for images in (1, 2, 3):
        journal.row(images, {})
    with open(journal.path, "rb") as file:
        before = file.read()
        journal.rewind(1)
        file.seek(0)
        assert file.read() == before
        assert os.stat(journal.path).st_size < len(before)
