"""The progress of a training on the terminal."""

import io
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mtgen.tracking.journal import Journal, JournalRow
from mtgen.tracking.progress_bar import TrainingProgress, format_duration, format_losses, format_pace


def row(images: int, seconds: float = 0.0, **values: float) -> JournalRow:
    return JournalRow(images, seconds, values={key.replace("__", "/"): value for key, value in values.items()})


def plain(width: int = 200) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=False, width=width), text


def test_a_plain_line_has_images_speed_time_left_and_losses() -> None:
    console, text = plain(width=40)  # and is not broken where the terminal ends
    progress = TrainingProgress(200_000, "digits", console)
    progress.update(row(12_000, loss__d=0.7124, loss__g=0.8, loss_d__class=0.1, speed__images_per_second=142.3))
    assert text.getvalue() == "12,000/200,000 images  142 img/s  22m left  D 0.712  G 0.8\n"


def test_plain_lines_come_at_intervals_and_the_last_one_always() -> None:
    console, text = plain()
    with TrainingProgress(100, "digits", console, every=1e9) as progress:
        for images in (10, 20, 30):
            progress.update(row(images, loss__d=1.0))
    assert [line.split("/")[0] for line in text.getvalue().splitlines()] == ["10", "30"]


def test_a_phase_is_printed_once() -> None:
    console, text = plain()
    progress = TrainingProgress(100, "digits", console)
    for _ in range(3):
        progress.status("starting workers")
    progress.update(JournalRow(0, 0.0, phase="evaluating"))
    assert text.getvalue() == "digits: starting workers\ndigits: evaluating\n"


def test_rows_without_losses_are_not_shown_as_progress() -> None:
    console, text = plain()
    with TrainingProgress(100, "digits", console) as progress:
        progress.update(row(10, test__accuracy=0.9))
    assert text.getvalue() == ""


def test_without_a_speed_in_the_row_it_is_computed_from_the_row_before() -> None:
    assert format_pace(row(3_000, 20.0), row(1_000, 10.0), 13_000) == "200 img/s  50s left"


def test_a_single_row_without_a_speed_has_no_time_left() -> None:
    assert format_pace(row(3_000, 20.0), None, 13_000) == ""


def test_a_run_past_its_length_has_no_negative_time_left() -> None:
    assert format_pace(row(1_010, speed__images_per_second=10.0), None, 1_000) == "10 img/s  0s left"


def test_losses_have_short_names() -> None:
    assert format_losses(row(1, loss__d=0.5, loss__class=12.3456, loss_d__class=1.0)) == "D 0.5  class 12.3"


@given(st.floats(0, 1e7))
def test_a_duration_is_correct_to_the_unit_that_it_shows(seconds: float) -> None:
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    shown = format_duration(seconds)
    digits = "".join(c if c.isdigit() else f" {unit[c]} " for c in shown).split()
    numbers = [int(n) for n in digits]
    value = sum(count * size for count, size in zip(numbers[::2], numbers[1::2], strict=True))
    assert abs(value - seconds) <= numbers[-1]
    assert all(
        count < limit for count, limit in zip(numbers[2::2], {"h": [60], "d": [24]}.get(shown[-1], [60]), strict=False)
    )


def test_on_a_terminal_the_bar_and_the_losses_under_it_are_drawn() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100)
    with TrainingProgress(200_000, "digits [1]", console) as progress:
        progress.status("starting workers")
        progress.update(row(12_000, loss__d=0.71, loss__g=0.8, speed__images_per_second=142.0))
    last = text.getvalue().rsplit("digits [1]", 1)[1]
    assert "12,000/200,000 images" in last and "142 img/s  22m left" in last and "D 0.71  G 0.8" in last
    assert "digits [1]: starting workers" not in last


@pytest.mark.timeout(60)
def test_follow_shows_every_row_of_a_training_and_ends_with_it(tmp_path: Path) -> None:
    console, text = plain()
    journal = Journal(tmp_path / "run")

    def train() -> None:
        for images in range(10, 60, 10):
            journal.row(images, {"loss/d": 1.0})
            time.sleep(0.02)

    training = threading.Thread(target=train)

    def alive() -> bool:
        if training.ident is None:  # asked for the first time
            training.start()
        return training.is_alive()

    with TrainingProgress(50, "digits", console, every=0.0) as progress:
        progress.follow(tmp_path / "run", 0, alive, poll=0.01)
    assert [line.split("/")[0] for line in text.getvalue().splitlines()] == ["10", "20", "30", "40", "50"]


@pytest.mark.timeout(60)
def test_follow_does_not_show_rows_of_an_earlier_session(tmp_path: Path) -> None:
    console, text = plain()
    journal = Journal(tmp_path)
    journal.append(0, start={"id": "first"})
    for images in (10, 20, 30):
        journal.row(images, {"loss/d": 1.0})
    asked: list[bool] = []

    def alive() -> bool:
        if not asked:
            journal.rewind(20)
            journal.append(20, start={"id": "second"})
            journal.row(40, {"loss/d": 2.0})
        asked.append(True)
        return len(asked) < 3

    with TrainingProgress(50, "digits", console, every=0.0) as progress:
        progress.follow(tmp_path, 20, alive, poll=0.01)
    assert [line.split("/")[0] for line in text.getvalue().splitlines()] == ["40"]


@pytest.mark.timeout(60)
def test_an_exception_of_alive_ends_follow() -> None:
    def alive() -> bool:
        raise KeyboardInterrupt

    console, _ = plain()
    with pytest.raises(KeyboardInterrupt), TrainingProgress(50, "digits", console) as progress:
        progress.follow("nowhere", 0, alive)
