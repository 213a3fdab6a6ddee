"""Threads sleep while they wait only where other work leaves too few CPUs, and users decide first."""

import os

import pytest

from mtgen.utils.openmp import SETTINGS, choose_wait_policy


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SETTINGS, "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # so that what the test sets is undone
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("load", "cpus", "threads", "passive"),
    [
        (0.3, 2, None, False),
        (1.0, 2, None, True),
        (3.0, 2, None, True),
        (3.0, 2, "1", False),  # a single thread waits for none
        (3.0, 8, "4", False),
        (5.0, 8, "4", True),
        (9.0, 8, "many", True),
    ],
)
def test_threads_sleep_where_other_work_leaves_too_few_cpus(
    load: float, cpus: int, threads: str | None, passive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    choose_wait_policy(load, cpus)
    assert os.environ.get("OMP_WAIT_POLICY") == ("PASSIVE" if passive else None)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_a_user_has_set_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "ACTIVE")
    choose_wait_policy(9.0, 2)
    assert os.environ[name] == "ACTIVE" and sum(own in os.environ for own in SETTINGS) == 1
