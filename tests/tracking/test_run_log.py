"""A run's log: plain lines with the time of day, only ever added to."""

import re
from pathlib import Path

import pytest

from mtgen.tracking.run_log import LOG_FILE, RunLog


def lines(folder: Path) -> list[str]:
    return (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()


def test_a_line_has_the_time_of_day_and_what_follows_a_break_stands_under_it(tmp_path: Path) -> None:
    RunLog(tmp_path).write("begins\non digits")
    first, second = lines(tmp_path)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  begins", first)
    assert second == " " * 21 + "on digits"


def test_another_process_goes_on_where_the_first_ended(tmp_path: Path) -> None:
    for text in ("one", "two"):
        RunLog(tmp_path).write(text)
    assert [line[21:] for line in lines(tmp_path)] == ["one", "two"]


def test_colors_and_other_control_characters_are_left_out(tmp_path: Path) -> None:
    RunLog(tmp_path).write("\x1b[31mred\x1b[0m\x07 für")
    assert lines(tmp_path)[0][21:] == "red für"


def test_what_is_said_is_also_written(tmp_path: Path) -> None:
    said: list[str] = []
    RunLog(tmp_path).tee(said.append)("stopping")
    assert said == ["stopping"] and lines(tmp_path)[0].endswith("  stopping")


def test_a_line_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="log.txt: a line is lost .*: lost words"):
        RunLog(tmp_path / "nowhere").write("lost words")
