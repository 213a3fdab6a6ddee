"""What all workers agree on: the probability of adaptive augmentation, and the error that ends training."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import toy
from torch import Tensor

from mtgen.config import AugmentConfig
from mtgen.errors import CheckpointError, DamagedSample, TrainingError
from mtgen.training.augment import ADAPT_EVERY_STEPS, MAX_ADAPTED_PROBABILITY, AdaptiveAugmentation
from mtgen.training.consensus import Consensus
from mtgen.training.step import frozen
from mtgen.training.steps import build_steps

BATCH = 16


def adapted(rank_parts: list[list[Tensor]], **settings: Any) -> float:
    """The probability after each worker has seen its part of the logit gaps of some steps."""
    strength = AdaptiveAugmentation(AugmentConfig(**{"probability": 0.3, "target": 0.6, "ramp": 1000, **settings}))
    for step, ahead in enumerate(rank_parts[dist.get_rank() if dist.is_initialized() else 0], start=1):
        strength.observe_logit_gap(ahead)
        strength.adapt(step, BATCH, None)
    return strength.probability


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(("ahead", "direction"), [(3.0, 1), (-3.0, -1), (0.0, -1)])
def test_the_probability_rises_only_while_real_samples_are_preferred_too_often(ahead: float, direction: int) -> None:
    steps = 2 * ADAPT_EVERY_STEPS
    probability = adapted([[torch.full((BATCH,), ahead)] * steps])
    assert probability == pytest.approx(0.3 + direction * steps * BATCH / 1000)


@pytest.mark.usefixtures("process_group")
def test_the_measure_is_the_mean_sign_not_the_size_of_the_logits() -> None:
    some = torch.tensor([100.0] + [-0.01] * (BATCH - 1))
    assert adapted([[some] * ADAPT_EVERY_STEPS]) < 0.3


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(("ahead", "end"), [(1.0, MAX_ADAPTED_PROBABILITY), (-1.0, 0.0)])
def test_the_probability_stays_between_0_and_what_cannot_leak(ahead: float, end: float) -> None:
    assert adapted([[torch.full((BATCH,), ahead)] * (100 * ADAPT_EVERY_STEPS)]) == end


@pytest.mark.usefixtures("process_group")
def test_without_a_target_the_probability_is_fixed() -> None:
    assert adapted([[torch.ones(BATCH)] * ADAPT_EVERY_STEPS], target=None) == 0.3


@pytest.mark.usefixtures("process_group")
def test_an_error_reaches_all_workers_with_its_message_and_exit_status() -> None:
    consensus = Consensus()
    for error in (DamagedSample("image", "a.tar: 7", "cut short"), CheckpointError("no"), TrainingError("late")):
        found = consensus.first_error(error)
        assert found is not None and (str(found), found.status) == (str(error), error.status)


def test_two_workers_agree_with_one(tmp_path: Path) -> None:
    whole = [
        torch.randn(BATCH, generator=torch.Generator().manual_seed(k)) + 0.8 for k in range(12 * ADAPT_EVERY_STEPS)
    ]
    halves = [[step[:8] for step in whole], [step[8:] for step in whole]]
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (one,) = toy.spawn(1, adapted, tmp_path / "one", [whole])
    assert toy.spawn(2, adapted, tmp_path / "two", halves) == [one, one]


@pytest.mark.usefixtures("process_group")
def test_a_resume_between_two_adaptations_loses_nothing() -> None:
    settings = AugmentConfig(probability=0.3, target=0.6, ramp=1000)
    steps = [torch.randn(BATCH, generator=torch.Generator().manual_seed(k)) + 0.8 for k in range(6 * ADAPT_EVERY_STEPS)]
    strength = AdaptiveAugmentation(settings)
    for number, ahead in enumerate(steps, start=1):
        if number == 3 * ADAPT_EVERY_STEPS + 3:
            kept = strength.state(None)
            strength = AdaptiveAugmentation(settings)
            strength.load(kept, first=True)
        strength.observe_logit_gap(ahead)
        strength.adapt(number, BATCH, None)
    assert strength.probability == adapted([steps])


@pytest.mark.usefixtures("process_group")
def test_the_discriminator_step_observes_the_logit_gap() -> None:
    settings = toy.config(augment__target=0.0, augment__probability=0.3, augment__ramp=1000)
    networks = toy.build(settings, toy.CARD)
    strength = AdaptiveAugmentation(settings.augment)
    d_step, _, _ = build_steps(settings, networks, strength)
    with torch.no_grad():  # all logits are 0: only the number of observed pairs is asserted
        networks.side.discriminator.heads["generation"].direction.zero_()
    with frozen(networks.generator):
        d_step(toy.batch(0, BATCH), (networks.generator,))
    assert strength.state(None)["pairs"] == BATCH
