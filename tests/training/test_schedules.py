"""Learning rates and other settings as functions of images seen."""

from typing import Any

import pytest
import torch
import yaml
from helpers import toy
from hypothesis import given
from hypothesis import strategies as st

from mtgen.config import AugmentConfig, Schedule, TrainConfig, validate, value_at
from mtgen.errors import ConfigError
from mtgen.training.schedules import learning_rate, lr_factor, lr_fraction, scheduled_values
from mtgen.training.step import frozen

trains = st.builds(TrainConfig, images=st.integers(1, 10**7), warmup=st.just(0), final_rate=st.floats(1e-3, 1))


def test_it_rises_linearly_over_the_warmup() -> None:
    train = TrainConfig(images=10**9, warmup=1000)
    assert [lr_factor(train, images) for images in (0, 250, 500, 1000)] == pytest.approx([0, 0.25, 0.5, 1], abs=1e-6)


@given(trains)
def test_it_starts_at_the_peak_and_ends_at_the_final_rate(train: TrainConfig) -> None:
    assert lr_factor(train, 0) == pytest.approx(1)
    assert lr_factor(train, train.images) == pytest.approx(train.final_rate)
    assert lr_factor(train, 10 * train.images) == pytest.approx(train.final_rate)


def test_half_way_it_is_half_way_between_peak_and_end() -> None:
    assert lr_factor(TrainConfig(images=1000, warmup=0, final_rate=0.2), 500) == pytest.approx(0.6)


@given(trains, st.integers(0, 10**7), st.integers(0, 10**7))
def test_after_the_warmup_it_never_rises(train: TrainConfig, a: int, b: int) -> None:
    assert lr_factor(train, max(a, b)) <= lr_factor(train, min(a, b)) + 1e-12


@given(
    st.builds(TrainConfig, images=st.integers(1, 10**6), warmup=st.integers(0, 10**6), final_rate=st.floats(1e-3, 1)),
    st.integers(1, 10**7),
)
def test_it_is_positive_and_never_above_the_peak(train: TrainConfig, images: int) -> None:
    assert 0 < lr_factor(train, images) <= 1


schedules = st.builds(
    Schedule, start=st.floats(0, 10), end=st.floats(0, 10), images=st.floats(1e-3, 1) | st.floats(2, 10**6)
)


@given(schedules, st.integers(1, 10**6), st.integers(0, 10**7))
def test_a_schedule_begins_ends_and_stays_where_it_says(schedule: Schedule, total: int, images: int) -> None:
    length = schedule.images * total if schedule.images <= 1 else schedule.images
    assert value_at(schedule, 0, total) == pytest.approx(schedule.start)
    assert value_at(schedule, int(length) + 1, total) == schedule.end
    low, high = sorted((schedule.start, schedule.end))
    assert low - 1e-12 <= value_at(schedule, images, total) <= high + 1e-12


def test_half_way_a_schedule_is_in_the_middle() -> None:
    assert value_at(Schedule(start=10, end=1, images=0.5), 250, 1000) == pytest.approx(5.5)
    assert value_at(Schedule(start=10, end=1, images=600), 300, 1000) == pytest.approx(5.5)
    assert value_at(0.3, 300, 1000) == 0.3


def test_a_scheduled_rate_has_the_warmup_and_not_the_final_rate() -> None:
    train, rate = TrainConfig(images=1000, warmup=100, final_rate=0.1), Schedule(start=2e-4, end=5e-5, images=0.5)
    assert learning_rate(train, rate, 50) == pytest.approx(0.5 * value_at(rate, 50, 1000))
    assert learning_rate(train, rate, 500) == learning_rate(train, rate, 1000) == pytest.approx(5e-5)
    assert lr_fraction(train, rate, 1000) == pytest.approx(0.25)
    assert (learning_rate(train, 2e-4, 1000), lr_fraction(train, 2e-4, 1000)) == pytest.approx((2e-5, 0.1))


R3GAN: dict[str, Any] = {
    "generator__learning_rate": {"start": 2e-4, "end": 5e-5},
    "discriminator__learning_rate": {"start": 2e-4, "end": 5e-5},
    "augment__probability": {"start": 0, "end": 0.55, "images": 500_000},
    "train__beta2": {"start": 0.9, "end": 0.99},
    "tasks__generation__gamma": {"start": 10, "end": 1, "images": 0.5},
}


def test_every_schedule_is_found_and_survives_being_written() -> None:
    config = toy.config(**R3GAN)
    assert validate(yaml.safe_load(config.to_yaml())) == config
    assert scheduled_values(config, 0) == {
        "augment.probability": 0.0,
        "tasks.generation.gamma": 10.0,
        "train.beta2": 0.9,
    }
    assert scheduled_values(config, config.train.images)["tasks.generation.gamma"] == 1.0
    assert scheduled_values(toy.config(), 0) == {}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train__beta2", {"start": 0.9, "end": 1}, "train.beta2.end=1.0: input should be less than 1"),
        (
            "generator__learning_rate",
            {"start": 0, "end": 1},
            "generator.learning_rate.start=0.0: input should be greater",
        ),
        ("generator__learning_rate", {"start": 1}, "generator.learning_rate.end: is missing"),
        ("tasks__generation__gamma", {"from": 1, "end": 2, "start": 3}, "tasks.generation.gamma.from: unknown key"),
        (
            "train__beta2",
            {"start": 0.9, "end": 0.99, "images": 0},
            "train.beta2.images=0: input should be greater than 0",
        ),
        ("tasks__generation__gamma", "much", "tasks.generation.gamma=much: input should be a valid number"),
        (
            "tasks__generation__gamma",
            {"start": -1, "end": 0},
            "tasks.generation.gamma.start=-1.0: input should be greater",
        ),
    ],
)
def test_a_mistake_in_a_schedule_is_an_error_that_names_the_key(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        toy.config(**{key: value})
    assert str(refused.value).startswith(message) and len(str(refused.value).splitlines()) == 1


def test_an_adapted_probability_cannot_follow_a_schedule() -> None:
    with pytest.raises(ConfigError, match="augment.target: adapts the probability"):
        toy.config(augment__target=0.6, augment__probability={"start": 0, "end": 0.5})


def test_a_step_uses_the_values_of_its_position(process_group: None) -> None:
    scheduled = toy.config(**R3GAN, train__images=160, augment__rotate=0.0)
    late = toy.batch(80, 16)
    losses = [step_losses(scheduled, late), step_losses(toy.config(tasks__generation__gamma=1.0), late)]
    assert losses[0]["generation_penalty"] == pytest.approx(losses[1]["generation_penalty"])
    early = [
        step_losses(scheduled, toy.batch(0, 16)),
        step_losses(toy.config(tasks__generation__gamma=1.0), toy.batch(0, 16)),
    ]
    assert early[0]["generation_penalty"] == pytest.approx(10 * early[1]["generation_penalty"], rel=1e-5)


def step_losses(config: Any, batch: Any) -> dict[str, float]:
    """The losses of a discriminator's step, without augmentation."""
    networks, d_step, _ = toy.steps(config.model_copy(update={"augment": AugmentConfig(probability=0.0)}))
    with frozen(networks.generator):
        _, log = d_step(batch, (networks.generator,))
    return {name: float(value) for name, value in log.items()}


def test_an_engine_steps_with_the_rates_that_are_set(process_group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    deep = toy.Deep(toy.config(train__beta2={"start": 0.9, "end": 0.99}))
    optimizer = deep.engines["generator"].optimizer
    assert optimizer.param_groups[0]["betas"] == (0.0, 0.9)
    deep.engines["generator"].set_rates(0.0, 0.95)
    before = toy.parameters(deep.networks)
    deep.step(0)
    after = toy.parameters(deep.networks)
    assert optimizer.param_groups[0]["betas"] == (0.0, 0.95)
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"side"}
