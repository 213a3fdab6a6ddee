"""The monitor raises each alarm once, also after a resume and after a kill."""

import re
from pathlib import Path
from typing import Any

import pytest

from mtgen.alarms import ALARMS_FILE, Alarm, AlarmMonitor, read_alarms
from mtgen.alarms.base import ALARM_RULES, AlarmRule
from mtgen.alarms.log import append
from mtgen.config import Config, validate
from mtgen.registry import by_path
from mtgen.tracking.journal import Journal

CONFIG: Config = validate({"name": "run", "data": {"path": "set"}, "train": {"ema_half_life": 20, "warmup": 0}})
SURE = {"loss_d/generation_adversarial": 0.005, "loss_g/generation_adversarial": 6.5}
ALARM = Alarm(100, "collapse", "generator", "alike", "more of it")


def written(folder: Path, *images: int) -> None:
    journal = Journal(folder)
    for number in images:
        journal.row(number, SURE)
    journal.close()


def test_an_alarm_is_raised_once_however_long_it_lasts(tmp_path: Path) -> None:
    monitor = AlarmMonitor(CONFIG, tmp_path)
    assert [len(monitor.check(images, SURE)) for images in range(50, 500, 50)] == [0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert [(alarm.kind, alarm.images) for alarm in read_alarms(tmp_path)] == [("saturation", 150)]


def test_what_has_lasted_before_a_resume_counts_after_it(tmp_path: Path) -> None:
    written(tmp_path, 50, 100)
    monitor = AlarmMonitor(CONFIG, tmp_path)
    assert not monitor.late and [alarm.images for alarm in monitor.check(150, SURE)] == [150]


def test_a_resume_from_before_an_alarm_knows_that_it_was_said(tmp_path: Path) -> None:
    first = AlarmMonitor(CONFIG, tmp_path)
    for images in (50, 100, 150):
        first.check(images, SURE)
    written(tmp_path, 50)  # a journal that was cut there
    monitor = AlarmMonitor(CONFIG, tmp_path)
    assert not any(monitor.check(images, SURE) for images in (100, 150, 200, 250))
    assert len(read_alarms(tmp_path)) == 1


def test_what_a_killed_process_did_not_come_to_say_is_said_late(tmp_path: Path) -> None:
    written(tmp_path, 50, 100, 150)
    monitor = AlarmMonitor(CONFIG, tmp_path)
    assert [alarm.images for alarm in monitor.late] == [150] and read_alarms(tmp_path) == monitor.raised
    assert not AlarmMonitor(CONFIG, tmp_path).late


def test_half_a_line_of_a_killed_process_costs_no_other(tmp_path: Path) -> None:
    append(tmp_path, ALARM)
    with (tmp_path / ALARMS_FILE).open("a") as file:
        file.write('{"images": 2')
    append(tmp_path, ALARM)
    assert read_alarms(tmp_path) == [ALARM, ALARM]


def test_a_run_without_alarms_has_none(tmp_path: Path) -> None:
    assert read_alarms(tmp_path) == []


def test_alarms_that_cannot_be_written_stop_nothing(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="alarms.jsonl: not written"):
        append(tmp_path / "nowhere", ALARM)


@pytest.fixture
def restored_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules that a test registers are gone after it."""
    ALARM_RULES.names()
    monkeypatch.setattr(ALARM_RULES, "_entries", dict(ALARM_RULES._entries))


@pytest.mark.usefixtures("restored_rules")
def test_the_custom_rule_in_the_documentation_works(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "alarms.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "own.py").write_text(code, encoding="utf-8")
    by_path(f"{tmp_path}/own.py:SlowData")
    monitor = AlarmMonitor(CONFIG, tmp_path)
    assert not monitor.check(50, {"speed/data_wait_share": 0.1})
    assert [alarm.what for alarm in monitor.check(100, {"speed/data_wait_share": 0.6})] == [
        "60% of the time is spent waiting for data"
    ]


@pytest.mark.usefixtures("restored_rules")
def test_a_rule_that_fails_stops_neither_the_run_nor_other_rules(tmp_path: Path) -> None:
    @ALARM_RULES.register("broken")
    class Broken(AlarmRule):
        def check(self, images: int, numbers: Any) -> Any:
            return 1 / 0

    monitor = AlarmMonitor(CONFIG, tmp_path)
    with pytest.warns(UserWarning, match="'broken' failed and is disabled .ZeroDivisionError"):
        monitor.check(50, SURE)
    monitor.check(100, SURE)
    assert [alarm.kind for alarm in monitor.check(150, SURE)] == ["saturation"]


def test_every_kind_is_explained_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "alarms.md").read_text(encoding="utf-8")
    assert all(f"| `{kind}` |" in page and f"**{kind}**:" in page for kind in ALARM_RULES)
