"""The loop and its callbacks: who is called when, and what all workers do together."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from helpers import toy

from mtgen.errors import DataError, TrainingError
from mtgen.schema import Batch
from mtgen.training.callbacks.base import Callback
from mtgen.training.callbacks.stopping import CheckpointRequest, ResizeRequest, StopFile, TimeLimit
from mtgen.training.consensus import Consensus
from mtgen.training.heartbeat import Heartbeat
from mtgen.training.progress import RunProgress
from mtgen.training.protocol import STOP_FILE, Outcome, Resize, WorkerContext
from mtgen.training.throughput_timer import ThroughputTimer
from mtgen.training.trainer import Trainer, build_callbacks

BATCH = 16


class Batches:
    """Data of a run, with an error in the place of one batch."""

    def __init__(self, broken: int | None = None) -> None:
        self.waited = 0.0
        self.closed = False
        self.error: DataError | None = None
        self._broken = broken
        self._next = 0

    def look_ahead(self, batches: int) -> int:
        if self._broken is None or self._next + batches <= self._broken:
            return batches
        self.error = DataError("data.path=nowhere: damaged")
        return self._broken - self._next

    def __next__(self) -> Batch:
        assert self._next != self._broken
        self._next += 1
        return toy.batch(0, BATCH)

    def close(self) -> None:
        self.closed = True


class Recorder(Callback):
    """Writes down which of its methods are called; requests an interrupt, or ends the run, at some steps."""

    def __init__(
        self, calls: list[str], name: str, parts: Any, interrupt_at: int | None = None, end_at: int | None = None
    ) -> None:
        self.calls = calls
        self.name = name
        self.parts = parts
        self.interrupt_at = interrupt_at
        self.end_at = end_at

    def record(self, method: str) -> None:
        self.calls.append(f"{self.name} {method} {self.parts.progress.steps}")

    def wants_interrupt(self) -> bool:
        return self.parts.progress.steps == self.interrupt_at

    def on_interrupt(self) -> Outcome | None:
        self.record("interrupt")
        return None

    def on_step_end(self) -> Outcome | None:
        self.record("step")
        return Outcome("stopped", 0, self.name) if self.parts.progress.steps == self.end_at else None

    def on_end(self, outcome: Outcome) -> Outcome:
        self.record("end")
        return outcome

    def close(self) -> None:
        self.record("close")


class StepCounter(Trainer):
    """The loop with steps that only count, and wait for all workers, as those that reduce gradients do.

    Args:
        pause: seconds that this worker takes for a step.
    """

    def __init__(self, parts: Any, callbacks: list[Callback], pause: float = 0.0) -> None:
        super().__init__(parts, callbacks)
        self.pause = pause

    def _step(self, batch: Batch) -> None:
        time.sleep(self.pause)
        dist.barrier()
        self.parts.progress.advance(BATCH)


def made_parts(folder: Path, steps: int, broken: int | None = None, **changes: Any) -> Any:
    worker = WorkerContext(dist.get_rank(), dist.get_world_size(), "cpu", 1, 1)
    return SimpleNamespace(
        **{
            "config": toy.config(runs=str(folder)),
            "worker": worker,
            "heartbeat": Heartbeat(folder, worker),
            "consensus": Consensus(),
            "progress": RunProgress(steps * BATCH),
            "timer": ThroughputTimer(),
            "loader": Batches(broken),
            "logger": None,
            **changes,
        }
    )


@pytest.mark.usefixtures("process_group")
def test_callbacks_are_called_in_their_order_after_each_step_and_at_the_end(tmp_path: Path) -> None:
    parts, calls = made_parts(tmp_path, 2), list[str]()
    outcome = StepCounter(parts, [Recorder(calls, name, parts) for name in "ab"]).run()
    assert outcome == Outcome("finished", 2 * BATCH) and parts.loader.closed
    assert calls == [
        *("a step 1", "b step 1", "a step 2", "b step 2"),
        *("a end 2", "b end 2", "a close 2", "b close 2"),
    ]


@pytest.mark.usefixtures("process_group")
def test_a_callback_that_ends_the_run_skips_those_behind_it(tmp_path: Path) -> None:
    parts, calls = made_parts(tmp_path, 9), list[str]()
    outcome = StepCounter(parts, [Recorder(calls, "a", parts, end_at=1), Recorder(calls, "b", parts)]).run()
    assert (outcome.status, outcome.message) == ("stopped", "a")
    assert calls == ["a step 1", "a end 1", "b end 1", "a close 1", "b close 1"]


@pytest.mark.usefixtures("process_group")
def test_a_run_that_has_seen_all_its_images_makes_no_step(tmp_path: Path) -> None:
    parts, calls = made_parts(tmp_path, 0), list[str]()
    assert StepCounter(parts, [Recorder(calls, "a", parts)]).run() == Outcome("finished", 0)
    assert calls == ["a end 0", "a close 0"]


@pytest.mark.usefixtures("process_group")
def test_the_outcome_is_on_disk_when_callbacks_are_closed(tmp_path: Path) -> None:
    finished: list[Outcome] = []
    parts = made_parts(tmp_path, 1, logger=SimpleNamespace(first_batch=lambda _: None, finish=finished.append))
    parts.samples = None
    parts.config.folder.mkdir()

    class Closing(Callback):
        def on_end(self, outcome: Outcome) -> Outcome:
            return Outcome.failure(outcome.images, TrainingError("no"))

        def close(self) -> None:
            assert Outcome.read(parts.config.folder) == finished[0] == Outcome("failed", BATCH, "no", 5)

    StepCounter(parts, [Closing()]).run()
    assert finished


class Requests(Callback):
    """Requests an interrupt while a file is there, which ends the run if its name is "stop"."""

    def __init__(self, parts: Any, path: Path, when: int) -> None:
        self.parts, self.path, self.when = parts, path, when
        self.seen: list[int] = []

    def on_step_end(self) -> Outcome | None:
        if self.parts.progress.steps == self.when and dist.get_rank() == 0:
            self.path.touch()
        return None

    def wants_interrupt(self) -> bool:
        return dist.get_rank() == 0 and self.path.exists()

    def on_interrupt(self) -> Outcome | None:
        self.seen.append(self.parts.progress.steps)
        if self.path.name == "stop":
            return Outcome("stopped", self.parts.progress.images)
        dist.barrier()
        self.path.unlink(missing_ok=True)
        dist.barrier()
        return None


def interrupted(folder: str) -> list[Any]:
    """The steps at which a worker is interrupted: once, and then to stop, the last worker being slow."""
    parts = made_parts(Path(folder), 10_000)
    requests = [Requests(parts, Path(folder) / name, when) for name, when in (("once", 3), ("stop", 6))]
    slow = 0.15 if dist.get_rank() == dist.get_world_size() - 1 else 0.0
    outcome = StepCounter(parts, list(requests), slow).run()
    return [outcome.status, outcome.images, *(request.seen for request in requests)]


def broken(folder: str) -> list[Any]:
    parts, calls = made_parts(Path(folder), 99, broken=7 if dist.get_rank() == 1 else None), list[str]()
    outcome = StepCounter(parts, [Recorder(calls, "a", parts)]).run()
    return [outcome.status, outcome.images, outcome.message, outcome.exit_status, calls[-3], calls[-1]]


def broken_while_another_stops(folder: str) -> list[Any]:
    """Worker 0 requests a stop while worker 1 is about to run out of data: the earlier of both steps is taken."""
    parts = made_parts(Path(folder), 99, broken=9 if dist.get_rank() == 1 else None)
    stop = Requests(parts, Path(folder) / "stop", 5)
    outcome = StepCounter(parts, [stop], 0.05).run()
    return [outcome.status, outcome.images]


def three(folder: str) -> list[list[Any]]:
    found = []
    for work in (interrupted, broken, broken_while_another_stops):
        own = Path(folder) / work.__name__
        own.mkdir(exist_ok=True)
        found.append(work(str(own)))
    return found


def test_all_workers_are_interrupted_before_the_same_step(tmp_path: Path) -> None:
    """Also if one is slow, the data of one of them end, or both happen at the same time."""
    first, *others = toy.spawn(3, three, tmp_path, str(tmp_path))
    assert all(other == first for other in others)
    (status, images, once, stop), damaged, both = first
    assert status == "stopped" and images == stop[-1] * BATCH
    assert len(once) == 1 and once[0] >= 3 and len(stop) == 1 and stop[0] >= 6
    expected = ["failed", 7 * BATCH, "data.path=nowhere: damaged", DataError.status, "a step 7", "a close 7"]
    assert damaged == expected
    assert both[0] in ("failed", "stopped") and 5 * BATCH <= both[1] <= 9 * BATCH  # which is first depends on time


@pytest.mark.usefixtures("process_group")
def test_a_single_worker_trains_on_all_data_before_an_error_and_is_interrupted_at_once(tmp_path: Path) -> None:
    parts, calls = made_parts(tmp_path, 9, broken=5), list[str]()
    outcome = StepCounter(parts, [Recorder(calls, "a", parts, interrupt_at=2)]).run()
    assert (outcome.images, outcome.exit_status) == (5 * BATCH, DataError.status)
    assert calls[1:4] == ["a step 2", "a interrupt 2", "a step 3"]


@pytest.mark.usefixtures("process_group")
def test_an_error_behind_the_end_of_a_run_is_none(tmp_path: Path) -> None:
    parts, calls = made_parts(tmp_path, 3, broken=3), list[str]()
    assert StepCounter(parts, [Recorder(calls, "a", parts)]).run() == Outcome("finished", 3 * BATCH)


@pytest.mark.usefixtures("process_group")
def test_a_stop_file_and_a_time_limit_end_a_run_before_its_next_step(tmp_path: Path) -> None:
    parts = made_parts(tmp_path, 9, config=toy.config(runs=str(tmp_path), train__max_minutes=1))
    callbacks = [StopFile(parts), TimeLimit(parts)]
    assert [callback.wants_interrupt() for callback in callbacks] == [False, False]
    parts.config.folder.mkdir()
    (parts.config.folder / STOP_FILE).touch()
    parts.timer = ThroughputTimer(60.0)
    assert [callback.wants_interrupt() for callback in callbacks] == [True, True]
    assert StepCounter(parts, callbacks).run() == Outcome("stopped", 0)
    (parts.config.folder / STOP_FILE).unlink()
    outcome = StepCounter(parts, callbacks).run()
    assert (outcome.status, outcome.images) == ("out of time", 0) and "train.max_minutes=1" in outcome.message


@pytest.mark.usefixtures("process_group")
def test_an_elastic_run_saves_reports_that_it_is_ready_and_continues_when_the_request_is_withdrawn(
    tmp_path: Path,
) -> None:
    config = toy.config(runs=str(tmp_path), workers={"min": 1, "max": 2})
    config.folder.mkdir()
    parts, events = made_parts(tmp_path, 9, config=config), list[str]()
    controller = Resize(config.folder)

    def withdraw() -> None:
        while not controller.is_ready():
            time.sleep(0.01)
        events.append("ready")
        controller.clear()

    checkpoints: Any = SimpleNamespace(save_and_wait=lambda: events.append("saved"))
    callback = ResizeRequest(parts, checkpoints)
    assert not callback.wants_interrupt()
    controller.ask()
    assert callback.wants_interrupt()
    thread = threading.Thread(target=withdraw)
    thread.start()
    assert callback.on_interrupt() is None
    thread.join()
    assert events == ["saved", "ready"] and not callback.wants_interrupt()


@pytest.mark.usefixtures("process_group")
def test_a_run_that_is_asked_for_a_checkpoint_writes_it_and_continues(tmp_path: Path) -> None:
    parts, saved = made_parts(tmp_path, 5), list[int]()
    parts.config.folder.mkdir()
    checkpoints: Any = SimpleNamespace(save_and_wait=lambda: saved.append(parts.progress.steps))
    request = CheckpointRequest(parts, checkpoints)

    class Asking(Callback):
        def on_step_end(self) -> None:
            if parts.progress.steps == 2:
                request.path.touch()

    assert StepCounter(parts, [Asking(), request]).run() == Outcome("finished", 5 * BATCH)
    assert saved == [2] and not request.path.exists()


@pytest.mark.usefixtures("process_group")
def test_a_run_of_a_fixed_number_of_workers_ignores_a_resize(tmp_path: Path) -> None:
    parts = made_parts(tmp_path, 9)
    parts.config.folder.mkdir()
    Resize(parts.config.folder).ask()
    assert not ResizeRequest(parts, SimpleNamespace()).wants_interrupt()  # type: ignore[arg-type]


@pytest.mark.usefixtures("process_group")
def test_a_run_that_has_to_fail_is_neither_evaluated_nor_saved_and_a_row_and_a_snapshot_precede_a_checkpoint(
    tmp_path: Path,
) -> None:
    parts = made_parts(tmp_path, 9, warn=print, samples=SimpleNamespace(folder="data"))
    names = [type(callback).__name__ for callback in build_callbacks(parts, None)]
    assert names == [
        "DivergenceGuard",
        "BadSampleGuard",
        "MetricsLogging",
        "Snapshotting",
        "Checkpointing",
        "StopFile",
        "TimeLimit",
        "CheckpointRequest",
        "ResizeRequest",
    ]
