"""Predictions equal calculations by hand, and change with the hardware as they should."""

from dataclasses import replace

import pytest
from helpers import toy

from mtgen.preflight.cost import Cost, cost
from mtgen.preflight.gpu_specs import GPUS, Gpu
from mtgen.preflight.roofline import (
    ACTIVATION_PASSES,
    KERNEL_LAUNCH_SECONDS,
    RESERVED_BYTES,
    USABLE_MEMORY_FRACTION,
    forecast,
)

SMALL = Gpu(half=1e12, single=1e11, memory=RESERVED_BYTES + 100e6, bandwidth=1e9, link=1e8, network=1e7, node=2)
COSTS = Cost({"generator": 400_000, "trunk": 600_000}, step=2e9, sampling=0, prediction=0, activations=1e6, kernels=100)


def test_the_time_of_each_part_is_its_amount_divided_by_its_speed() -> None:
    found = forecast(toy.config(batch_size=32, workers=2, precision="bf16"), COSTS, SMALL, 2, 0.5)
    assert found.rows == 16
    assert found.arithmetic == pytest.approx(16 * 2e9 / (1e12 * 0.5))
    assert found.traffic == pytest.approx(ACTIVATION_PASSES * 16 * 1e6 / 1e9)
    assert found.launches == pytest.approx(100 * KERNEL_LAUNCH_SECONDS)
    assert found.reduction == pytest.approx(2 * 4 * 1_000_000 / 2 / 1e8)
    assert found.images_per_second == pytest.approx(
        32 / (max(found.arithmetic, found.traffic, found.launches) + found.reduction)
    )
    assert found.days(86_400 * 7) == pytest.approx(7 / found.images_per_second)


def test_the_largest_micro_batch_fills_the_memory_beside_the_state() -> None:
    found = forecast(toy.config(batch_size=32, workers=2), COSTS, SMALL, 2, 0.5)
    assert found.most_rows == int((100e6 * USABLE_MEMORY_FRACTION - 20e6) / 1e6)
    assert found.fits and not replace(found, rows=found.most_rows + 1).fits


def test_a_state_that_is_too_large_leaves_no_room() -> None:
    found = forecast(toy.config(batch_size=32, workers=2), COSTS, replace(SMALL, memory=RESERVED_BYTES + 1e6), 2, 0.5)
    assert found.most_rows == 0 and not found.fits


def test_more_gpus_than_a_node_has_reduce_over_the_network() -> None:
    config = toy.config(batch_size=96, workers=3)
    assert forecast(config, COSTS, SMALL, 3, 0.5).reduction == pytest.approx(2 * 4 * 1_000_000 * 2 / 3 / 1e7)


def test_the_longest_part_is_the_bottleneck() -> None:
    config = toy.config(batch_size=32, workers=2)
    assert forecast(config, COSTS, replace(SMALL, bandwidth=1e6), 2, 1.0).bound == "memory"
    assert forecast(config, COSTS, replace(SMALL, half=1e6, single=1e6), 2, 1.0).bound == "arithmetic"
    assert forecast(config, COSTS, replace(SMALL, link=1.0), 2, 1.0).bound == "gradient reduction"
    assert forecast(config, replace(COSTS, kernels=10**9), SMALL, 2, 1.0).bound == "kernel launches"


def test_accumulation_launches_all_kernels_again() -> None:
    whole = forecast(toy.config(batch_size=32, workers=1), COSTS, SMALL, 1, 0.5)
    parts = forecast(toy.config(batch_size=32, workers=1, train__accumulation=4), COSTS, SMALL, 1, 0.5)
    assert (
        parts.rows == whole.rows / 4 and parts.launches == 4 * whole.launches and parts.arithmetic == whole.arithmetic
    )


def test_every_known_gpu_is_slower_in_single_precision_and_between_nodes() -> None:
    assert all(gpu.single < gpu.half and gpu.network <= gpu.link for gpu in GPUS.values())


def test_kernels_do_not_depend_on_the_number_of_images() -> None:
    few, many = (cost(toy.config(), toy.CARD, rows=rows) for rows in (8, 32))
    assert few.kernels == many.kernels > 100
