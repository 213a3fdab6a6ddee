"""Predictions equal calculations by hand, and change with the hardware as they should."""

from dataclasses import replace

import pytest
from helpers import toy

from mtgen.preflight.collectives import LL, SIMPLE, all_reduce_latency, gather_latency
from mtgen.preflight.cost import Cost, cost
from mtgen.preflight.gpu_specs import GPUS, Gpu
from mtgen.preflight.roofline import (
    RESERVED_BYTES,
    USABLE_MEMORY_FRACTION,
    Assumptions,
    forecast,
    forecast_bars,
)

SMALL = Gpu(half=1e12, single=1e11, memory=RESERVED_BYTES + 100e6, bandwidth=1e9, link=1e8, network=1e7, node=2)
COSTS = Cost({"generator": 400_000, "trunk": 600_000}, step=2e9, sampling=0, prediction=0, activations=1e6, kernels=100)

ASSUME = Assumptions(
    utilization=0.5,
    launch_seconds=14e-6,
    passes=4,
    bandwidth=0.5,
    latencies=LL,
    overlap=0.0,
    jitter=0.0,
    wait_seconds=1e-4,
    copy_rate=1e9,
)


def test_the_time_of_each_part_is_its_amount_divided_by_its_speed() -> None:
    found = forecast(toy.config(batch_size=32, workers=2, precision="bf16"), COSTS, SMALL, 2, ASSUME)
    times = found.times
    assert found.rows == 16
    assert times.arithmetic == pytest.approx(16 * 2e9 / (1e12 * 0.5))
    assert times.memory == pytest.approx(4 * 16 * 1e6 / 1e9)
    assert times.launches == pytest.approx(100 * 14e-6)
    assert times.reduction == pytest.approx(2 * 4 * 1_000_000 / 2 / (1e8 * 0.5))
    assert times.alignment == times.waits == times.stragglers == 0
    assert times.latency == pytest.approx(2 * (6.6e-6 + 2 * 0.6e-6))
    partitioned = forecast(toy.config(batch_size=32, workers=2, zero_stage=1), COSTS, SMALL, 2, ASSUME).times
    assert partitioned.latency - times.latency == pytest.approx(2 * 2 * (6.6e-6 + 0.6e-6))
    assert found.images_per_second == pytest.approx(32 / (times.memory + times.reduction + times.latency))
    assert found.days(86_400 * 7) == pytest.approx(7 / found.images_per_second)
    assert found.checkpoint_stall == pytest.approx(12 * 1_000_000 / 1e9)


def test_collectives_hop_once_per_gpu_in_a_ring_and_once_per_doubling_of_nodes_in_a_tree() -> None:
    assert all_reduce_latency(LL, 1, 8) == gather_latency(LL, 1, 8) == 0
    assert all_reduce_latency(LL, 1024, 8) == pytest.approx(6.8e-6 + 2 * (7 * 0.6e-6 + 7 * 5e-6))
    assert gather_latency(LL, 1024, 8) == pytest.approx(6.6e-6 + (1023 - 127) * 0.6e-6 + 127 * 2.7e-6)
    assert all_reduce_latency(SIMPLE, 2, 1) == pytest.approx(8.4e-6 + 2 * 14e-6)


def test_alignment_gathers_embeddings_and_keeps_its_rows_against_all_columns() -> None:
    aligned = replace(COSTS, contrasts=2, contrast_bytes=8.0, embeddings=64)
    config = toy.config(batch_size=32, workers=2, precision="bf16")
    plain, found = (forecast(config, costs, SMALL, 2, ASSUME) for costs in (COSTS, aligned))
    assert found.times.alignment == pytest.approx(2 * 4 * 64 * 32 / 2 / (1e8 * 0.5))
    assert found.memory - plain.memory == 8 * 16 * 32
    assert found.times.latency - plain.times.latency == pytest.approx(3 * gather_latency(LL, 2, 2))
    assert found.times.arithmetic - plain.times.arithmetic == pytest.approx(6 * 2 * 16 * 32 * 32 / (1e11 * 0.5))
    whole, many = (replace(aligned, contrast_bytes=size) for size in (0.0, 1e4))
    most = forecast(config, many, SMALL, 2, ASSUME).most_rows
    room = 100e6 * USABLE_MEMORY_FRACTION - COSTS.state_bytes(0, 2)
    assert most * 1e6 + most**2 * 2e4 <= room < (most + 1) * 1e6 + (most + 1) ** 2 * 2e4
    assert most < forecast(config, whole, SMALL, 2, ASSUME).most_rows


def test_waits_gates_and_stragglers_make_a_step_longer() -> None:
    config = toy.config(batch_size=32, workers=2, precision="bf16", train__accumulation=2)
    found = forecast(config, replace(COSTS, gates=3, waits=2), SMALL, 2, replace(ASSUME, jitter=0.01)).times
    plain = forecast(config, COSTS, SMALL, 2, ASSUME).times
    assert found.waits == pytest.approx(2 * 2 * 1e-4)
    assert found.latency - plain.latency == pytest.approx(2 * 3 * all_reduce_latency(LL, 2, 2))
    assert found.stragglers == pytest.approx(0.01 * (2 * 0.6931472) ** 0.5 * plain.memory)


def test_a_reduction_that_overlaps_the_backward_hides_behind_it() -> None:
    config = toy.config(batch_size=32, workers=2, precision="bf16")
    found = forecast(config, COSTS, replace(SMALL, link=1e9), 2, replace(ASSUME, overlap=1.0)).times
    assert found.reduction == 0
    slow = forecast(config, COSTS, SMALL, 2, replace(ASSUME, overlap=1.0)).times
    assert slow.reduction == pytest.approx(2 * 4 * 1_000_000 / 2 / 5e7 - 2 / 3 * slow.memory)


def test_error_bars_enclose_the_expected_speed() -> None:
    worst, expected, best = forecast_bars(toy.config(batch_size=32, workers=2), COSTS, SMALL, 2, 0.25)
    assert worst.images_per_second < expected.images_per_second < best.images_per_second
    assert (worst.memory, worst.most_rows) == (best.memory, best.most_rows)


def test_the_largest_micro_batch_fills_the_memory_beside_the_state() -> None:
    found = forecast(toy.config(batch_size=32, workers=2), COSTS, SMALL, 2, ASSUME)
    assert found.most_rows == int((100e6 * USABLE_MEMORY_FRACTION - 20e6) / 1e6)
    assert found.fits and not replace(found, rows=found.most_rows + 1).fits


def test_a_state_that_is_too_large_leaves_no_room() -> None:
    found = forecast(
        toy.config(batch_size=32, workers=2), COSTS, replace(SMALL, memory=RESERVED_BYTES + 1e6), 2, ASSUME
    )
    assert found.most_rows == 0 and not found.fits


def test_more_gpus_than_a_node_has_reduce_over_the_network() -> None:
    config = toy.config(batch_size=96, workers=3)
    assert forecast(config, COSTS, SMALL, 3, ASSUME).times.reduction == pytest.approx(
        2 * 4 * 1_000_000 * 2 / 3 / (1e7 * 0.5)
    )


def test_the_longest_part_is_the_bottleneck() -> None:
    config = toy.config(batch_size=32, workers=2)

    def bound(costs: Cost = COSTS, **changes: float) -> str:
        return forecast(config, costs, replace(SMALL, **changes), 2, ASSUME).times.bound  # type: ignore[arg-type]

    assert bound(bandwidth=1e6) == "memory"
    assert bound(half=1e6, single=1e6) == "arithmetic"
    assert bound(link=1.0) == "reduction"
    assert bound(replace(COSTS, kernels=10**9)) == "launches"


def test_accumulation_launches_all_kernels_again() -> None:
    whole = forecast(toy.config(batch_size=32, workers=1), COSTS, SMALL, 1, ASSUME)
    parts = forecast(toy.config(batch_size=32, workers=1, train__accumulation=4), COSTS, SMALL, 1, ASSUME)
    assert parts.rows == whole.rows / 4 and parts.times.launches == 4 * whole.times.launches
    assert parts.times.arithmetic == whole.times.arithmetic


def test_every_known_gpu_is_slower_in_single_precision_and_between_nodes() -> None:
    assert all(gpu.single < gpu.half and gpu.network <= gpu.link for gpu in GPUS.values())


def test_kernels_do_not_depend_on_the_number_of_images() -> None:
    few, many = (cost(toy.config(), toy.CARD, rows=rows) for rows in (8, 32))
    assert few.kernels == many.kernels > 100


def test_gates_and_contrasts_are_those_of_the_configuration() -> None:
    plain = cost(toy.config(), toy.CARD)
    assert (plain.gates > 0, plain.waits, plain.contrasts, plain.contrast_bytes) == (True, 0, 0, 0.0)
    waiting = cost(toy.config(balancing__weighting="upgrad"), toy.CARD)
    assert (waiting.waits, waiting.gates) == (2, 3), "the canvas has equal weights"
    assert cost(toy.config(balancing__canvas="upgrad"), toy.CARD).waits == 1
    aligned = cost(toy.everything(), toy.CARD)
    vectors = aligned.embeddings // toy.everything().discriminator.embedding  # with that of the image
    assert vectors > 2 and aligned.contrasts == vectors * (vectors - 1)
    assert 4 <= aligned.contrast_bytes / aligned.contrasts <= 16
