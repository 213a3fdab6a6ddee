"""When each rule raises an alarm, on rows as a run writes them; the numbers of good runs were measured."""

from collections.abc import Iterable
from typing import Any

import pytest

from mtgen.alarms.base import ALARM_RULES, Finding, grace_images
from mtgen.config import Config, validate

GRACE = 1000  # images until a run is judged


def config(**changes: Any) -> Config:
    values = {"name": "run", "data": {"path": "set"}, "tasks": {"generation": {}, "classification": {"weight": 1.0}}}
    return validate({**values, "train": {"ema_half_life": GRACE / 5, "warmup": 0}, **changes})


def findings(kind: str, rows: Iterable[tuple[int, dict[str, float]]], **changes: Any) -> list[list[Finding]]:
    """What a rule finds in each of the rows."""
    rule = ALARM_RULES[kind](config(**changes))
    return [list(rule.check(images, numbers)) for images, numbers in rows]


def test_a_run_is_young_until_its_averaged_weights_have_their_half_life_or_its_warm_up_is_over() -> None:
    assert grace_images(config()) == GRACE
    assert grace_images(config(train={"ema_half_life": 0, "warmup": 500})) == 500


def diversities(*values: float, every: int = GRACE) -> list[list[Finding]]:
    return findings("collapse", [(every * (n + 1), {"generated/diversity": value}) for n, value in enumerate(values)])


@pytest.mark.parametrize("good", [(0.59, 0.62, 0.9), (0.14, 0.33, 0.39), (1.24, 0.9, 0.96), (0.45, 0.86, 0.45)])
def test_diversity_that_is_high_or_grows_is_no_collapse(good: tuple[float, ...]) -> None:
    assert not any(diversities(*good))


def test_diversity_that_is_low_and_stays_so_is_a_collapse() -> None:
    assert [len(found) for found in diversities(0.28, 0.28, 0.28)] == [0, 1, 1]


def test_diversity_that_falls_to_half_of_its_best_is_a_collapse_at_once() -> None:
    *before, (found,) = diversities(0.7, 0.9, 0.4)
    assert not any(before) and "down from 0.90" in found.what


def test_without_classes_all_images_together_are_judged() -> None:
    rows = [(GRACE * n, {"generated/spread": 0.1}) for n in (1, 2)]
    _, (found,) = findings("collapse", rows)
    assert "images vary 0.10 times" in found.what and "generated/spread" in found.what
    with_classes = [(images, {**numbers, "generated/diversity": 0.8}) for images, numbers in rows]
    assert not any(findings("collapse", with_classes))


def test_a_young_run_may_generate_similar_images() -> None:
    assert not any(diversities(0.1, 0.1, 0.1, every=GRACE // 5))


def games(discriminator: float, generator: float, weight: float = 1.0) -> list[list[Finding]]:
    """Eight rows, a quarter of the grace period apart, with these adversarial losses."""
    numbers = {
        "loss_d/generation_adversarial": weight * discriminator,
        "loss_g/generation_adversarial": weight * generator,
    }
    rows = [(GRACE // 4 * n, {**numbers, "gradient/generator_norm": 16.0}) for n in range(1, 9)]
    return findings("saturation", rows, tasks={"generation": {"weight": weight}})


@pytest.mark.parametrize("good", [(0.27, 2.89), (0.61, 1.86), (0.1, 2.4), (0.69, 0.69)])
@pytest.mark.parametrize("weight", [1.0, 10.0])
def test_a_game_that_is_undecided_is_no_saturation(good: tuple[float, float], weight: float) -> None:
    assert not any(games(*good, weight))


@pytest.mark.parametrize("weight", [1.0, 0.1])
def test_logits_that_are_far_apart_for_long_are_saturation(weight: float) -> None:
    found = games(0.005, 6.5, weight)
    assert [len(some) for some in found] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert "now by 6.5" in found[4][0].what


def test_one_undecided_row_restarts_the_count() -> None:
    sure = {"loss_d/generation_adversarial": 0.005, "loss_g/generation_adversarial": 6.5}
    even = {"loss_d/generation_adversarial": 0.5, "loss_g/generation_adversarial": 1.0}
    rows = [(GRACE // 4 * n, even if n == 4 else sure) for n in range(1, 9)]
    assert not any(findings("saturation", rows))


def test_losses_that_fall_or_were_large_before_are_no_divergence() -> None:
    detection = [
        (100 * n, {"loss_d/detection_heat": 450.0 / n, "loss_d/generation_penalty": 1e-4 * 10**n}) for n in range(1, 5)
    ]
    assert not any(findings("divergence", detection))


def test_a_loss_that_grows_a_hundredfold_or_is_beyond_all_measure_explodes() -> None:
    grows = [(100 * n, {"loss_g/generation_adversarial": 1.5 + n % 2}) for n in range(6)]
    *before, (found,) = findings("divergence", [*grows, (600, {"loss_g/generation_adversarial": 300.0})])
    assert not any(before) and "the generator's generation adversarial is 300" in found.what
    assert findings("divergence", [(100, {"loss_d/generation_penalty": 2e4})])[0]


def test_a_loss_that_is_not_finite_is_named() -> None:
    ((found,),) = findings("divergence", [(100, {"loss_d/segmentation_cross_entropy/nonfinite": 1.0})])
    assert found.what == "not finite: the discriminator's segmentation cross entropy"


def skipped_steps(*totals: float, **changes: Any) -> list[list[Finding]]:
    rows = [(100 * n, {"gradient/generator_nonfinite_steps": total}) for n, total in enumerate(totals)]
    return findings("divergence", rows, **changes)


def test_a_loss_scale_that_settles_is_no_divergence() -> None:
    assert not any(skipped_steps(8, 8, 9, 9, 10, 11, 11))


def test_many_skipped_steps_are_divergence_however_many_rows_they_fall_into() -> None:
    assert [len(found) for found in skipped_steps(0, 5, 10, 15)] == [0, 0, 1, 1]
    assert [len(found) for found in skipped_steps(0, 5, train={"nonfinite_limit": 4})] == [0, 1]


def test_tasks_whose_gradients_were_not_finite_are_named_with_the_steps() -> None:
    numbers = {"gradient/discriminator_nonfinite_steps": 12.0, "balancing_discriminator/nonfinite_segmentation": 12.0}
    ((found,),) = findings("divergence", [(100, numbers)])
    assert "first in segmentation: 12 steps of the discriminator" in found.what


def lessons(
    accuracies: list[float], loss: float = 0.0, rate: float = 1.0, metric: str = "val/class_accuracy"
) -> list[list[Finding]]:
    """An evaluation per grace period, ten rows in between; from row to row the loss falls by the fraction `loss`."""
    rows: list[tuple[int, dict[str, float]]] = []
    for n, accuracy in enumerate(accuracies):
        for k in range(1, 11):
            gate = {
                f"balancing_discriminator/{what}_{task}": 1.0
                for what in ("norm", "weight")
                for task in ("generation", "classification")
            }
            gate["balancing_discriminator/norm_classification"] = 1e-3
            value = 2.3 * (1 - loss) ** (10 * n + k)
            rows.append(
                (
                    n * GRACE + k * GRACE // 10,
                    {"loss_d/classification_cross_entropy": value, "learning_rate/factor": rate, **gate},
                )
            )
        rows.append(((n + 1) * GRACE, {metric: accuracy}))
    return [found for (_, numbers), found in zip(rows, findings("stalled", rows), strict=True) if metric in numbers]


@pytest.mark.parametrize("metric", ["val/class_accuracy", "test/class_accuracy"])  # the second is of older versions
def test_a_task_whose_metric_is_poor_and_whose_loss_is_flat_has_stalled(metric: str) -> None:
    first, (found,), _ = lessons([0.1, 0.1, 0.1], metric=metric)
    assert not first and found.about == "classification"
    assert f"{metric} is 0.100 and has not improved since 1,000 images" in found.what
    assert "its gradient is 0.1 % of the total at the discriminator's gate" in found.what


@pytest.mark.parametrize(
    ("accuracies", "loss", "rate"),
    [
        ([0.13, 0.29, 0.39], 0.0, 1.0),
        ([0.97, 0.97, 0.97], 0.0, 1.0),
        ([0.1, 0.1, 0.1], 0.01, 1.0),
        ([0.3, 0.3, 0.3], 0.0, 0.2),
    ],
    ids=["it improves", "it is good", "its loss falls", "learning rates have decayed"],
)
def test_a_task_has_not_stalled_where(accuracies: list[float], loss: float, rate: float) -> None:
    assert not any(lessons(accuracies, loss, rate))


def passes(*rows: tuple[int, float]) -> list[list[Finding]]:
    """Rows with the slowest worker and the time of its passes, where the mean is 100 ms."""
    names = ("workers/forward_ms_slowest", "workers/forward_ms_max", "workers/forward_ms_mean")
    numbers = [dict(zip(names, (float(worker), ms, 100.0), strict=True)) for worker, ms in rows]
    return findings("straggler", [(n, row) for n, row in enumerate(numbers)])


def test_a_worker_that_is_a_tenth_slower_in_ten_rows_in_a_row_is_a_straggler() -> None:
    *before, (found,) = passes(*[(3, 120.0)] * 10)
    assert not any(before)
    assert (found.about, found.what[:36]) == ("worker 3", "its forward passes took 1.20 times t")


@pytest.mark.parametrize("interruption", [(3, 105.0), (4, 120.0)])
def test_a_worker_that_is_slow_now_and_then_is_no_straggler(interruption: tuple[int, float]) -> None:
    assert not any(passes(*[(3, 120.0)] * 9, interruption, *[(3, 120.0)] * 9))
    assert not any(findings("straggler", [(n, {"loss/d": 1.0}) for n in range(20)]))


def test_every_alarm_says_what_usually_helps() -> None:
    found = [
        *diversities(0.1, 0.1)[-1],
        *games(0.005, 6.5)[-1],
        *skipped_steps(20)[-1],
        *lessons([0.1, 0.1])[-1],
        *passes(*[(3, 120.0)] * 10)[-1],
    ]
    assert len(found) == len(ALARM_RULES.names()) and all(finding.help for finding in found)
