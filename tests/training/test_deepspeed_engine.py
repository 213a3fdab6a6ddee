"""Two DeepSpeed engines in one process train exactly as a plain torch loop does."""

from pathlib import Path

import pytest
import torch
from helpers import toy
from torch import Tensor


def trained(changes: list[dict], number: int) -> list[dict[str, Tensor]]:
    """Parameters after `number` steps, for each of several configurations trained in one process."""
    results = []
    for change in changes:
        deep = toy.Deep(toy.config(**change))
        for k in range(number):
            deep.step(k)
        results.append(toy.parameters(deep.networks))
    return results


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


UNCLIPPED = {"train__clip_factor": 0.0}
"""Without clipping, which has its own test: its factor rounds."""

CASES = [
    {
        **UNCLIPPED,
        "zero_stage": stage,
        "train__accumulation": accumulation,
        "balancing__weighting": gate,
        "balancing__canvas": gate,
    }
    for stage in (0, 1, 2)
    for accumulation in (1, 2)
    for gate in ("none", "equal", "upgrad")
]
CASES += [
    {**UNCLIPPED, "zero_stage": stage, "train__accumulation": 2, "tasks__generation__penalty": "exact"}
    for stage in (0, 1, 2)
]


def test_one_worker_equals_a_plain_loop_exactly_in_every_zero_stage(tmp_path: Path) -> None:
    (results,) = toy.spawn(1, trained, tmp_path, CASES, 4)
    for case, result in zip(CASES, results, strict=True):
        assert difference(result, toy.plain(toy.config(**case), 4)) == 0.0, case


def test_two_workers_equal_a_plain_loop_over_the_whole_batch(tmp_path: Path) -> None:
    # With accumulation a weighting sees one micro-batch at a time, so only a plain sum equals the whole batch.
    slow = {"discriminator__learning_rate": 3e-4}  # Adam makes a whole step even if the gradient is a rounding error
    cases = [
        {"workers": 2, **slow, **case}
        for case in CASES
        if case["train__accumulation"] == 1 or case.get("balancing__weighting") != "upgrad"
    ]
    both = toy.spawn(2, trained, tmp_path, cases, 4)
    for case, first, second in zip(cases, *both, strict=True):
        whole = toy.plain(toy.config(**{**case, "workers": 1, "train__accumulation": 1}), 4)
        assert difference(first, whole) < 1e-5, case
        assert difference(first, second) == 0.0, case


@pytest.mark.parametrize("workers", [1, 2])
def test_gradients_far_beyond_the_usual_norm_are_clipped_alike_in_every_zero_stage(
    tmp_path: Path, workers: int
) -> None:
    """The maximum is a hundredth of the usual norm, so every step but the first is clipped."""
    cases = [
        {"workers": workers, "discriminator__learning_rate": 3e-4, "train__clip_factor": 0.01, "zero_stage": stage}
        for stage in (0, 1, 2)
    ]
    whole, unclipped = (
        toy.plain(toy.config(**{**cases[0], "workers": 1, "train__clip_factor": clip}), 4) for clip in (0.01, 0)
    )
    assert difference(whole, unclipped) > 1e-4
    for results in toy.spawn(workers, trained, tmp_path, cases, 4):
        for case, result in zip(cases, results, strict=True):
            assert difference(result, whole) < 1e-5, case


def test_an_elastic_run_makes_the_same_steps_on_two_workers_and_on_three(tmp_path: Path) -> None:
    elastic = {
        "workers": {"min": 2, "max": 3},
        "batch_size": 48,
        "train__accumulation": 2,
        "discriminator__learning_rate": 3e-4,
    }
    cases = [{**elastic, "zero_stage": stage, "balancing__weighting": "equal"} for stage in (0, 1)]
    results = {}
    for world in (2, 3):
        (tmp_path / str(world)).mkdir()
        results[world] = toy.spawn(world, trained, tmp_path / str(world), cases, 4)[0]
    for case, two, three in zip(cases, results[2], results[3], strict=True):
        assert toy.config(**case).worker_counts == [2, 3]
        assert difference(two, three) < 1e-5, case
        assert difference(two, toy.plain(toy.config(**{**case, "workers": 1, "train__accumulation": 6}), 4)) < 1e-5, (
            case
        )


def test_the_gate_with_equal_weights_only_changes_the_order_of_sums() -> None:
    gated = toy.plain(toy.config(balancing__weighting="equal", balancing__canvas="equal"), 3)
    assert difference(gated, toy.plain(toy.config(balancing__weighting="none", balancing__canvas="none"), 3)) < 1e-5


def test_training_moves_every_parameter() -> None:
    start = toy.parameters(toy.steps(toy.config())[0])
    end = toy.plain(toy.config(), 6)
    still = [name for name in start if torch.equal(start[name], end[name])]
    assert still == []


def spoiled(change: dict) -> dict[str, float]:
    """A good step, one with NaN on the second worker, a good step: the guards' counts, and how far parameters moved."""
    deep = toy.Deep(toy.config(workers=2, **change))
    deep.step(0)
    before = toy.parameters(deep.networks)
    deep.step(1, spoil=torch.distributed.get_rank() == 1)
    during = toy.parameters(deep.networks)
    counts = {side: engine.optimizer.skipped.item() for side, engine in deep.engines.items()}
    in_a_row = deep.engines["discriminator"].optimizer.in_a_row.item()
    deep.step(2)
    after = toy.parameters(deep.networks)
    return {
        **counts,
        "in_a_row": in_a_row,
        "in_a_row_after": deep.engines["discriminator"].optimizer.in_a_row.item(),
        "moved_during": difference(before, during),
        "moved_after": difference(during, after),
        "steps": deep.engines["discriminator"].steps_taken,
    }


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_step_that_is_not_finite_on_one_worker_is_skipped_on_all(tmp_path: Path, stage: int) -> None:
    for result in toy.spawn(2, spoiled, tmp_path, {"zero_stage": stage}):
        assert result["discriminator"] == 1 and result["in_a_row"] == 1 and result["in_a_row_after"] == 0
        assert result["moved_during"] == 0.0, "a skipped step changed parameters"
        assert result["moved_after"] > 0.0
        assert result["steps"] == 2
