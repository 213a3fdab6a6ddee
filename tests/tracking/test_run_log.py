"""A run's log: plain lines with date and time, to which lines are only appended."""

import re
from pathlib import Path

import pytest

from mtgen.tracking.run_log import LOG_FILE, RunLog


def lines(folder: Path) -> list[str]:
    return (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()


def test_a_line_has_the_time_and_further_lines_are_indented(tmp_path: Path) -> None:
    RunLog(tmp_path).write("begins\non digits")
    first, second = lines(tmp_path)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  begins", first)
    assert second == " " * 21 + "on digits"


def test_another_process_appends_to_the_log(tmp_path: Path) -> None:
    for text in ("one", "two"):
        RunLog(tmp_path).write(text)
    assert [line[21:] for line in lines(tmp_path)] == ["one", "two"]


def test_colors_and_control_characters_are_removed(tmp_path: Path) -> None:
    RunLog(tmp_path).write("\x1b[31mred\x1b[0m\x07 für")
    assert lines(tmp_path)[0][21:] == "red für"


def test_tee_passes_a_line_on_and_writes_it(tmp_path: Path) -> None:
    said: list[str] = []
    RunLog(tmp_path).tee(said.append)("stopping")
    assert said == ["stopping"] and lines(tmp_path)[0].endswith("  stopping")


def test_a_line_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="log.txt: a line could not be written .*: lost words"):
        RunLog(tmp_path / "nowhere").write("lost words")
