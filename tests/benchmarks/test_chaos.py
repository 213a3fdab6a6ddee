"""The chaos benchmark: its schedule, the cost of faults, and the comparison with the undisturbed run."""

import importlib
import random
from pathlib import Path
from typing import Any

import pytest

from mtgen.training.sample_log import LogSegment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def chaos(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("chaos")


def steps(begin: int, end: int, at: float) -> list[tuple[float, list[int]]]:
    """Two workers' steps over two positions each, one a second."""
    return [(at + n, list(range(p, p + 2))) for n, start in enumerate(range(begin, end, 4)) for p in (start, start + 2)]


@pytest.fixture
def segments() -> dict[int, LogSegment]:
    """Killed at 20 and resumed from 8; a segment without steps; resumed from 8 again, to 24."""
    return {0: LogSegment(0, 0, steps(0, 20, 100.0)), 1: LogSegment(1, 8), 2: LogSegment(2, 8, steps(8, 24, 130.0))}


def test_a_schedule_has_every_kind_equally_often_and_depends_on_its_seed_alone(chaos: Any) -> None:
    names = tuple(kind.name for kind in chaos.KINDS)
    groups = chaos.schedule(2 * len(names), random.Random(3), names)
    found = [fault.kind.name for group in groups for fault in group]
    assert sorted(found) == sorted(2 * names)
    assert (
        chaos.schedule(2 * len(names), random.Random(3), names)
        == groups
        != chaos.schedule(2 * len(names), random.Random(4), names)
    )
    assert all(group[0].at is not None and all(fault.at is None for fault in group[1:]) for group in groups)


def test_time_to_recover_is_from_the_fault_or_from_the_last_step_that_came_after_it_to_the_first_new_one(
    chaos: Any, segments: dict[int, LogSegment]
) -> None:
    fault = chaos.Fault(chaos.KINDS[0], 0, 0.0, before=0, after=2)
    fault.struck = 110.0
    assert fault.recovery_seconds(segments) == 20.0
    fault.struck = 101.0  # training outlived it for a while: there was a step at 104
    assert fault.recovery_seconds(segments) == 26.0


def test_what_was_learned_twice_is_counted_once_for_each_time_it_was_lost(
    chaos: Any, segments: dict[int, LogSegment]
) -> None:
    assert chaos.recomputed_images(segments, 0, 2) == 20 - 8


def test_only_the_time_of_steps_that_were_kept_is_useful(chaos: Any, segments: dict[int, LogSegment]) -> None:
    assert chaos.useful_seconds(segments) == 1.0 + 3.0  # positions 0 to 8, then 8 to 24


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"facts": {"digest": "b"}}, ["digest"]),
        ({"learned": [0, 1, 2]}, ["1 positions were never learned from"]),
        ({"learned": [0, 1, 2, 2, 3]}, ["0 positions were never learned from, 1 more than once"]),
        ({"points": {"loss/d": [(2, 0.5)]}}, ["curve of loss/d differs"]),
        (
            {"points": {"loss/d": [(2, 0.5), (4, 0.4), (4, 0.4)]}},
            ["duplicate points of loss/d", "curve of loss/d differs"],
        ),
        (
            {"points": {"loss/d": [(2, 0.5), (4, 0.4)], "system/cpu": [(2, 1.0), (2, 1.0)]}},
            ["duplicate points of system/cpu"],
        ),
    ],
    ids=[
        "none",
        "parameters",
        "a gap",
        "twice",
        "a point is missing",
        "a point twice",
        "a system metric twice",
    ],
)
def test_every_difference_to_the_undisturbed_run_is_named(chaos: Any, change: dict[str, Any], said: list[str]) -> None:
    calm = {"digest": "a", "digest_averaged": "a", "position": 4, "steps": 2}
    curves = {"loss/d": [(2, 0.5), (4, 0.4)]}
    learned, points = change.get("learned", [0, 1, 2, 3]), change.get("points", curves)
    found = list(chaos.differences(calm, calm | change.get("facts", {}), 4, learned, (curves, points)))
    assert len(found) == len(said) and all(words in line for words, line in zip(said, found, strict=True)), found
