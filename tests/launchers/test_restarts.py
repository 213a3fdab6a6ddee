"""Lost workers are replaced at a limited rate, which progress resets."""

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.train import FailureConfig, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from mtgen.launchers.ray_internals import FailureDecision, FailureRate, folder_problem
from mtgen.launchers.restarts import RestartBudget, newest_checkpoint
from mtgen.launchers.shared_folder import NONCE_FILE, FolderNotShared, check_shared, write_nonce

LOST = WorkerGroupError("lost", {3: RuntimeError("killed")})


class Run:
    """A run whose time and progress the test sets."""

    def __init__(self, limit: int) -> None:
        self.now, self.images = 0.0, -1
        self.budget = RestartBudget(limit, 60, lambda: self.images, lambda: self.now)

    def fails(self, *minutes: float) -> list[bool]:
        found = []
        for minute in minutes:
            self.now = 60 * minute
            found.append(self.budget.spend())
        return found


def test_failures_within_the_window_are_limited() -> None:
    assert Run(2).fails(0, 10, 20) == [True, True, False]
    assert Run(0).fails(0) == [False]


def test_failures_before_the_window_are_forgotten() -> None:
    assert Run(2).fails(0, 30, 60, 90, 120, 121) == [True] * 5 + [False]


def test_progress_begins_the_count_again() -> None:
    run = Run(1)
    for minute in range(5):
        run.images += 100
        assert run.fails(minute) == [True]
    assert run.fails(5) == [False]


def test_the_newest_checkpoint_is_the_progress(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) == -1
    for images in (96, 160):
        (tmp_path / "checkpoints" / f"{images:012d}").mkdir(parents=True)
    assert newest_checkpoint(tmp_path) == 160


def policy(limit: int) -> FailureRate:
    return FailureRate(FailureConfig(max_failures=-1, max_preemption_failures=-1), Run(limit).budget)


def test_ray_replaces_lost_workers_as_often_as_the_budget_allows() -> None:
    once = policy(1)
    assert [once.make_decision(LOST) for _ in range(2)] == [FailureDecision.RETRY, FailureDecision.RAISE]


def test_preempted_workers_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    preempted: Any = RayActorError()
    monkeypatch.setattr(type(preempted), "preempted", True)
    error = WorkerGroupError("gone", {0: preempted, 1: RuntimeError("connection reset")})
    none = policy(0)
    assert [none.make_decision(error) for _ in range(3)] == [FailureDecision.RETRY] * 3


def test_a_worker_that_sees_another_folder_ends_the_run_at_once() -> None:
    problem = FolderNotShared("worker 1 on b does not see it")
    error = WorkerGroupError("lost", {0: RuntimeError("killed"), 1: UserExceptionWithTraceback(problem, "...")})
    assert policy(9).make_decision(error) == FailureDecision.RAISE
    assert folder_problem(error) is problem and folder_problem(LOST) is None


def test_a_worker_that_sees_the_drivers_folder_continues(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / f"{96:012d}").mkdir(parents=True)
    check_shared(tmp_path, write_nonce(tmp_path), 96, "worker 0 on a", wait_seconds=0)


@pytest.mark.parametrize("nonce", [None, "of an earlier start"])
def test_another_folder_under_the_same_path_is_refused_by_name(tmp_path: Path, nonce: str | None) -> None:
    if nonce:
        (tmp_path / NONCE_FILE).write_text(nonce)
    with pytest.raises(FolderNotShared, match=f"worker 1 on b does not see {tmp_path} .*runs=FOLDER"):
        check_shared(tmp_path, "of this start", -1, "worker 1 on b", wait_seconds=0)


@pytest.mark.parametrize(("has", "sees"), [([], "no checkpoint in"), ([96], "no checkpoint after 96 images in")])
def test_a_worker_that_finds_less_progress_is_refused_by_name(tmp_path: Path, has: list[int], sees: str) -> None:
    for images in has:
        (tmp_path / "checkpoints" / f"{images:012d}").mkdir(parents=True)
    nonce = write_nonce(tmp_path)
    with pytest.raises(FolderNotShared, match=f"worker 1 on b sees {sees} .*found one of 160; set runs=FOLDER"):
        check_shared(tmp_path, nonce, 160, "worker 1 on b", wait_seconds=0)
