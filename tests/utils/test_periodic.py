"""Work that a thread repeats."""

import threading

import pytest

from mtgen.utils.periodic import Periodic


def test_a_function_is_called_until_it_is_stopped() -> None:
    calls, third = list[int](), threading.Event()

    def count() -> None:
        calls.append(1)
        if len(calls) == 3:
            third.set()

    with Periodic(0.001, count, "counting"):
        assert third.wait(60)
    after = len(calls)
    assert "counting" not in [thread.name for thread in threading.enumerate()] and len(calls) == after


def test_a_function_may_end_its_own_calls() -> None:
    calls = list[int]()
    periodic = Periodic(0.001, lambda: (calls.append(1), periodic.end())[1], "once")
    periodic.start()
    periodic.stop()
    assert calls == [1]


def test_an_error_is_printed_once_and_does_not_end_the_calls(capsys: pytest.CaptureFixture[str]) -> None:
    calls, fourth = list[int](), threading.Event()

    def fail() -> None:
        calls.append(1)
        if len(calls) == 4:
            fourth.set()
        raise ValueError("other" if len(calls) == 2 else "the same")

    with Periodic(0.001, fail, "failing"):
        assert fourth.wait(60)
    shown = capsys.readouterr().err
    assert shown.count("ValueError: the same") == 1 and shown.count("ValueError: other") == 1
    assert shown.count("the thread 'failing' met an error") == 2


def test_what_never_started_can_be_stopped() -> None:
    Periodic(1, lambda: None, "idle").stop()
