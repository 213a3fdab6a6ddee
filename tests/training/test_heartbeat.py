"""Which workers hang, and which are only busy."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from mtgen.launchers.watchdog import Hang, HangDetector, HangWatchdog, end_process, phase_limits
from mtgen.training.heartbeat import (
    HEARTBEAT_FOLDER,
    HEARTBEAT_SECONDS,
    Heartbeat,
    HeartbeatRecord,
    read_heartbeats,
)
from mtgen.training.protocol import WorkerContext
from mtgen.training.stacks import read_stacks

LIMITS = phase_limits(3600)


def beat(rank: int, number: int, steps: int, busy: str = "", collectives: int = 0) -> HeartbeatRecord:
    return HeartbeatRecord(rank, number, steps, busy, pid=100 + rank, born=1.0, node="", collectives=collectives)


def ranks(found: list[Hang]) -> list[int]:
    return [one.beat.rank for one in found]


def local_stacks(beats: Sequence[HeartbeatRecord]) -> list[str]:
    return read_stacks([(beat.pid, beat.born, beat.stacks) for beat in beats])


def local_kill(beat: HeartbeatRecord) -> bool:
    return end_process(beat.pid, beat.born)


def watchdog(folder: Path, say: Callable[[str], None], kill: Callable[[HeartbeatRecord], bool] = local_kill) -> Any:
    return HangWatchdog(folder, 60, LIMITS, kill, local_stacks, say)


def test_a_worker_whose_heartbeat_stops_hangs_while_the_one_that_waits_for_it_does_not() -> None:
    detector = HangDetector(60, LIMITS)
    assert [ranks(detector.find_hung([beat(0, t, 5), beat(1, 0, 5)], t)) for t in (0, 59, 60)] == [[], [], [1]]


def test_of_workers_with_heartbeats_the_one_behind_hangs() -> None:
    detector = HangDetector(60, LIMITS)
    detector.find_hung([beat(0, 0, 5), beat(1, 0, 5)], 0)
    assert ranks(detector.find_hung([beat(0, 1, 6), beat(1, 1, 5)], 1)) == []
    assert ranks(detector.find_hung([beat(0, 2, 6), beat(1, 2, 5)], 61)) == [1]


@pytest.mark.parametrize(
    ("collectives", "hung", "reason"),
    [
        ((9, 7, 9), [1], "it did not enter collective 8, in step 6, which the 2 other workers have entered"),
        ((9, 7, 7), [1, 2], "it did not enter collective 8, in step 6, which 1 of 2 other workers have entered"),
        ((9, 9, 9), [0], "all 3 workers have entered 9 collectives, so none is missing"),
    ],
)
def test_of_workers_in_the_same_step_those_hang_that_are_missing_in_a_collective(
    collectives: tuple[int, ...], hung: list[int], reason: str
) -> None:
    detector = HangDetector(60, LIMITS)
    detector.find_hung([beat(rank, 0, 5, "", count) for rank, count in enumerate(collectives)], 0)
    found = detector.find_hung([beat(rank, 1, 5, "", count) for rank, count in enumerate(collectives)], 60)
    assert ranks(found) == hung and all(reason in one.reason for one in found)


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
    watch = watchdog(tmp_path, messages.append)
    watch.check(0)
    watch.check(59)
    assert stopped.poll() is None and messages == []
    watch.check(60)
    assert stopped.wait() == -signal.SIGKILL
    assert len(messages) == 1 and f"worker 0 ({socket.gethostname()}, process {stopped.pid})" in messages[0]
    assert "(while starting)" in messages[0] and "the process is in the state 'stopped'" in messages[0]
    again = watchdog(tmp_path, messages.append)
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
    watch = watchdog(tmp_path, messages.append, kill)
    watch.check(0)
    watch.check(60)
    assert stopped.poll() is None and messages == []
    watch.check(61)
    assert stopped.wait() == -signal.SIGKILL and len(messages) == 1
    watch.check(122)
    assert asked == [stopped.pid] * 2


HANGING = """
import sys, time
from datetime import timedelta
from pathlib import Path
import torch
import torch.distributed as dist
from mtgen.training.heartbeat import Heartbeat
from mtgen.training.protocol import WorkerContext

def next_batch():
    time.sleep(600)

folder, rank = Path(sys.argv[1]), int(sys.argv[2])
store = dist.FileStore(str(folder / "store"), 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=600))
group = dist.new_group(backend="gloo")
with Heartbeat(folder, WorkerContext(rank, 2, "cpu", 1, 1)) as heartbeat:
    for _ in range(3):
        dist.all_reduce(torch.ones(1))
        dist.barrier(group=group)
        heartbeat.step()
    if rank == 1:
        next_batch()
    dist.all_reduce(torch.ones(1))
"""


def test_the_worker_that_is_missing_in_a_collective_is_named_and_killed_after_all_have_written_their_stacks(
    tmp_path: Path,
) -> None:
    workers = [subprocess.Popen([sys.executable, "-c", HANGING, str(tmp_path), str(rank)]) for rank in (0, 1)]
    try:
        while [beat.collectives for beat in read_heartbeats(tmp_path)] != [7, 6]:
            assert all(worker.poll() is None for worker in workers)
            time.sleep(0.05)
        messages: list[str] = []
        watch = watchdog(tmp_path, messages.append)
        watch.check(0)
        time.sleep(2 * HEARTBEAT_SECONDS)
        watch.check(59)
        time.sleep(2 * HEARTBEAT_SECONDS)
        watch.check(60)
        assert workers[1].wait() == -signal.SIGKILL
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    (message,) = messages
    assert f"worker 1 ({socket.gethostname()}, process {workers[1].pid}) made no step for 60 s after 3 steps" in message
    assert "it did not enter collective 7, in step 4, which the other worker has entered" in message
    assert "it was in `next_batch`" in message
    (file,) = tmp_path.glob("stacks-*.txt")
    assert f"the stacks of all workers are in {file}" in message
    text = file.read_text()
    assert text.splitlines()[0] in message
    assert "in all_reduce" in text.partition("worker 0 (")[2].partition("worker 1 (")[0]


def test_a_process_without_a_recorder_gets_no_signal() -> None:
    born = psutil.Process().create_time()
    assert (
        read_stacks([(os.getpid(), born, 0), (os.getpid(), born - 100, 0)]) == ["no stacks: the process has ended"] * 2
    )


def test_another_process_with_the_same_number_is_not_killed() -> None:
    assert not end_process(os.getpid(), psutil.Process().create_time() - 100)


def test_a_heartbeat_in_a_folder_that_became_read_only_ends_without_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with Heartbeat(tmp_path, WorkerContext(0, 1, "cpu", 1, 1)):
        monkeypatch.setattr(Path, "unlink", refuse)
    assert capsys.readouterr().err == ""


def test_a_run_without_workers_says_once_a_minute_what_it_waits_for(tmp_path: Path) -> None:
    messages: list[str] = []
    say = messages.append
    watch = HangWatchdog(tmp_path, 60, LIMITS, local_kill, local_stacks, say, lambda: "waiting for 8 workers")
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
