"""Which workers hang, and which are only busy."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from mtgen.launchers.watchdog import HangDetector, HangWatchdog, end_process, phase_limits
from mtgen.training.heartbeat import HEARTBEAT_FOLDER, Heartbeat, HeartbeatRecord, read_heartbeats
from mtgen.training.protocol import WorkerContext

LIMITS = phase_limits(3600)


def beat(rank: int, number: int, steps: int, busy: str = "") -> HeartbeatRecord:
    return HeartbeatRecord(rank, number, steps, busy, pid=100 + rank, born=1.0, node="")


def ranks(found: list[HeartbeatRecord]) -> list[int]:
    return [one.rank for one in found]


def test_a_worker_whose_heartbeat_stops_hangs_while_the_one_that_waits_for_it_does_not() -> None:
    detector = HangDetector(60, LIMITS)
    assert [ranks(detector.find_hung([beat(0, t, 5), beat(1, 0, 5)], t)) for t in (0, 59, 60)] == [[], [], [1]]


def test_of_workers_with_heartbeats_the_one_behind_hangs() -> None:
    detector = HangDetector(60, LIMITS)
    detector.find_hung([beat(0, 0, 5), beat(1, 0, 5)], 0)
    assert ranks(detector.find_hung([beat(0, 1, 6), beat(1, 1, 5)], 1)) == []
    assert ranks(detector.find_hung([beat(0, 2, 6), beat(1, 2, 5)], 61)) == [1]


@pytest.mark.parametrize("busy", ["evaluating", "waiting for more workers"])
def test_while_one_worker_is_busy_with_what_has_no_limit_none_hangs_however_long(busy: str) -> None:
    detector = HangDetector(60, LIMITS)
    assert all(detector.find_hung([beat(0, t, 5, busy), beat(1, t, 5)], t) == [] for t in range(0, 10_000, 30))
    assert detector.find_hung([beat(0, 10_000, 5), beat(1, 10_000, 5)], 10_020) == []


@pytest.mark.parametrize(("phase", "limit"), LIMITS.items())
def test_a_worker_that_is_busy_with_one_phase_for_too_long_hangs(phase: str, limit: float) -> None:
    detector = HangDetector(60, LIMITS)
    times = [*range(0, int(limit), 30), limit]
    assert [ranks(detector.find_hung([beat(0, t, 5, phase), beat(1, t, 6)], t)) for t in times][-2:] == [[], [0]]
    detector = HangDetector(60, LIMITS)  # it makes a step now and then
    assert not any(detector.find_hung([beat(0, t, t // 600, phase), beat(1, t, 6)], t) for t in range(0, 10_000, 30))


def test_a_process_that_is_stopped_while_busy_hangs() -> None:
    detector = HangDetector(60, LIMITS)
    detector.find_hung([beat(0, 0, 5, "evaluating")], 0)
    assert ranks(detector.find_hung([beat(0, 0, 5, "evaluating")], 60)) == [0]


def test_a_worker_that_replaces_a_lost_one_starts_from_scratch() -> None:
    detector = HangDetector(60, LIMITS)
    detector.find_hung([beat(0, 7, 5)], 0)
    fresh = HeartbeatRecord(0, 7, 0, "", pid=999, born=2.0, node="")
    assert detector.find_hung([fresh], 100) == []


def test_a_heartbeat_reports_what_its_worker_does_and_ends_with_it(tmp_path: Path) -> None:
    with Heartbeat(tmp_path, WorkerContext(3, 4, "cpu", 1, 1, "node")) as heartbeat:
        while not (found := read_heartbeats(tmp_path)):
            time.sleep(0.01)
        assert (found[0].rank, found[0].busy, found[0].pid, found[0].node) == (3, "starting", os.getpid(), "node")
        heartbeat.step()
        with heartbeat.busy("evaluating"):
            while read_heartbeats(tmp_path)[0].busy != "evaluating":
                time.sleep(0.01)
        while (now := read_heartbeats(tmp_path)[0]).busy:
            time.sleep(0.01)
        assert now.steps == 1 and now.number > found[0].number
    assert read_heartbeats(tmp_path) == []


def test_where_nothing_can_be_written_a_heartbeat_raises_no_error(tmp_path: Path) -> None:
    (tmp_path / HEARTBEAT_FOLDER).touch()
    with Heartbeat(tmp_path, WorkerContext(0, 1, "cpu", 1, 1)) as heartbeat:
        heartbeat.step()


BEATING = """
import sys, time
from pathlib import Path
from mtgen.training.heartbeat import Heartbeat
from mtgen.training.protocol import WorkerContext
with Heartbeat(Path(sys.argv[1]), WorkerContext(0, 1, "cpu", 1, 1)):
    time.sleep(600)
"""


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that wrote heartbeats until it was stopped."""
    process = subprocess.Popen([sys.executable, "-c", BEATING, str(tmp_path)])
    while not read_heartbeats(tmp_path):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGSTOP)
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    yield process
    process.kill()
    process.wait()


def test_a_stopped_process_is_killed_and_named_and_an_ended_one_is_not(
    tmp_path: Path, stopped: "subprocess.Popen[bytes]"
) -> None:
    messages: list[str] = []
    watch = HangWatchdog(tmp_path, 60, LIMITS, lambda beat: end_process(beat.pid, beat.born), messages.append)
    watch.check(0)
    watch.check(59)
    assert stopped.poll() is None and messages == []
    watch.check(60)
    assert stopped.wait() == -signal.SIGKILL
    assert len(messages) == 1 and f"worker 0 (process {stopped.pid})" in messages[0] and "while starting" in messages[0]
    again = HangWatchdog(tmp_path, 60, LIMITS, lambda beat: end_process(beat.pid, beat.born), messages.append)
    for now in (0, 60, 120):
        again.check(now)
    assert messages[1:] == ["waiting for workers"]


def test_a_process_whose_node_does_not_answer_is_killed_at_the_next_check(
    tmp_path: Path, stopped: "subprocess.Popen[bytes]"
) -> None:
    asked: list[int] = []

    def kill(beat: HeartbeatRecord) -> bool:
        asked.append(beat.pid)
        if len(asked) == 1:
            raise TimeoutError
        return end_process(beat.pid, beat.born)

    messages: list[str] = []
    watch = HangWatchdog(tmp_path, 60, LIMITS, kill, messages.append)
    watch.check(0)
    watch.check(60)
    assert stopped.poll() is None and messages == []
    watch.check(61)
    assert stopped.wait() == -signal.SIGKILL and len(messages) == 1
    watch.check(122)
    assert asked == [stopped.pid] * 2


def test_another_process_with_the_same_number_is_not_killed() -> None:
    assert not end_process(os.getpid(), psutil.Process().create_time() - 100)


def test_a_heartbeat_in_a_folder_that_became_read_only_ends_without_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    failed: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    with Heartbeat(tmp_path, WorkerContext(0, 1, "cpu", 1, 1)):
        monkeypatch.setattr(Path, "unlink", refuse)
    assert failed == []


def test_a_run_without_workers_says_once_a_minute_what_it_waits_for(tmp_path: Path) -> None:
    messages: list[str] = []
    watch = HangWatchdog(tmp_path, 60, LIMITS, lambda beat: True, messages.append, lambda: "waiting for 8 workers")
    begin = time.monotonic()
    for second in range(0, 200, 5):
        watch.check(begin + second)
    assert messages == ["waiting for 8 workers"] * 3
    (tmp_path / HEARTBEAT_FOLDER).mkdir()
    for second in range(200, 400, 5):
        alive = HeartbeatRecord(0, second, second, "", os.getpid(), 1.0, "")
        (tmp_path / HEARTBEAT_FOLDER / "0.json").write_text(json.dumps(asdict(alive)))
        watch.check(begin + second)
    assert len(messages) == 3
