"""Averaged weights, with a half-life in images."""

import pytest
import torch
from torch import nn

from mtgen.models.ema import EMA


def network(value: float = 0.0) -> nn.Linear:
    layer = nn.Linear(2, 1).double()
    for parameter in layer.parameters():
        nn.init.constant_(parameter, value)
    return layer


def value(average: EMA) -> float:
    (low, high) = torch.cat([t.flatten() for t in average.state().values()]).aminmax()
    assert low == high
    return low.item()


def test_after_one_half_life_the_old_weights_count_half() -> None:
    live = network(8.0)
    average = EMA([("g", live)], 1000)
    for parameter in live.parameters():
        nn.init.zeros_(parameter)
    for step in range(10):
        average.update(100, 10**6 + 100 * step)
    assert value(average) == pytest.approx(4.0)


def test_it_is_the_exponentially_weighted_mean_of_all_weights() -> None:
    live, half_life, size = network(1.0), 700.0, 64
    average = EMA([("g", live)], half_life)
    history = [1.0, 3.0, -2.0, 0.5, 4.0]
    for step, weight in enumerate(history[1:]):
        for parameter in live.parameters():
            nn.init.constant_(parameter, weight)
        average.update(size, 10**6 + size * step)
    keep = 0.5 ** (size / half_life)
    steps = len(history) - 1
    closed = keep**steps * history[0] + (1 - keep) * sum(keep ** (steps - k) * history[k] for k in range(1, steps + 1))
    assert value(average) == pytest.approx(closed)


def test_the_half_life_is_at_most_a_fifth_of_the_images_seen() -> None:
    live = network(1.0)
    average = EMA([("g", live)], 10**6)
    for parameter in live.parameters():
        nn.init.zeros_(parameter)
    average.update(50, 50)  # a half-life of 10 images, so five in a step
    assert value(average) == pytest.approx(0.5**5)


def test_a_half_life_of_zero_is_the_live_weights() -> None:
    live = network(1.0)
    average = EMA([("g", live)], 0)
    for parameter in live.parameters():
        nn.init.constant_(parameter, 7.0)
    average.update(64, 64)
    assert value(average) == 7.0


def test_the_average_does_not_depend_on_the_batch_size() -> None:
    live = network(1.0)
    averages = {size: EMA([("g", live)], 500) for size in (20, 100)}
    for parameter in live.parameters():
        nn.init.zeros_(parameter)
    for size, average in averages.items():
        for _ in range(1000 // size):
            average.update(size, 10**6)
    assert value(averages[20]) == pytest.approx(value(averages[100])) == pytest.approx(0.25)


def test_state_is_a_copy_with_the_names_of_all_networks_that_can_be_loaded() -> None:
    first, second = network(1.0), network(2.0)
    average = EMA([("generator", first), ("side", second)], 100)
    state = average.state()
    assert set(state) == {"generator.weight", "generator.bias", "side.weight", "side.bias"}
    average.load({name: tensor + 5 for name, tensor in state.items()})
    assert state["side.bias"].item() == 2.0
    average.copy_to_live()
    assert (first.bias.item(), second.bias.item()) == (6.0, 7.0)
