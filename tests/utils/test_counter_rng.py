"""Counter-based random numbers: functions of (seed, purpose, position, index), and random in every other respect."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from mtgen.utils import counter_rng

MANY = torch.arange(20_000)
SIGMAS = 4.5  # standard deviations of the statistic; seeds are fixed, so a test that passes always does

seeds = st.integers(0, 2**31 - 1)
positions = st.integers(0, 2**40)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.double().flatten(), b.double().flatten()]))[0, 1])


def test_normals_have_the_moments_of_a_standard_normal() -> None:
    x = counter_rng.normal(0, "latent", MANY, (8,)).double().flatten()
    n = len(x)
    assert abs(x.mean()) < SIGMAS * n**-0.5
    assert abs(x.square().mean() - 1) < SIGMAS * (2 / n) ** 0.5
    assert abs((x**3).mean()) < SIGMAS * (15 / n) ** 0.5
    assert abs((x**4).mean() - 3) < SIGMAS * (96 / n) ** 0.5


def test_normals_are_distributed_normally_and_uniforms_uniformly() -> None:
    assert stats.kstest(counter_rng.normal(1, "latent", MANY, (2,)).flatten().numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(counter_rng.uniform(1, "crop", MANY, 2).flatten().numpy(), "uniform").pvalue > 1e-3


def test_normals_are_finite_and_reach_the_tails() -> None:
    x = counter_rng.normal(2, "latent", torch.arange(200_000), (4,))
    assert bool(torch.isfinite(x).all())
    assert 4.5 < float(x.max()) < 6.0  # 24 bits reach sqrt(-2 ln 2^-24) = 5.77
    assert -6.0 < float(x.min()) < -4.5


def test_uniforms_are_in_the_half_open_unit_interval() -> None:
    x = counter_rng.uniform(3, "crop", torch.arange(200_000), 4)
    assert float(x.min()) >= 0
    assert float(x.max()) < 1


def test_every_bit_is_set_half_of_the_time() -> None:
    random = counter_rng.bits(4, "bits", MANY, 4).flatten()
    share = torch.stack([((random >> bit) & 1).double().mean() for bit in range(64)])
    assert float((share - 0.5).abs().max()) < SIGMAS * 0.5 * len(random) ** -0.5


def test_neighboring_positions_indices_seeds_and_purposes_are_uncorrelated() -> None:
    x = counter_rng.normal(5, "latent", MANY, (4,))
    pairs = {
        "positions": (x[:-1], x[1:]),
        "indices": (x[:, :-1], x[:, 1:]),
        "halves of a pair": (x[:, :2], x[:, 2:]),
        "squares of the halves": (x[:, :2] ** 2, x[:, 2:] ** 2),  # one radius serves both
        "seeds": (x, counter_rng.normal(6, "latent", MANY, (4,))),
        "purposes": (x, counter_rng.normal(5, "latent ", MANY, (4,))),
        "a step of 64": (x[:-64], x[64:]),
    }
    assert {name for name, (a, b) in pairs.items() if abs(correlation(a, b)) > SIGMAS * a.numel() ** -0.5} == set()


def test_no_two_positions_have_the_same_bits() -> None:
    assert len(torch.unique(counter_rng.bits(0, "bits", torch.arange(200_000), 1))) == 200_000


@given(seeds, st.lists(positions, min_size=1, max_size=8), st.integers(1, 9), st.integers(0, 9))
def test_the_first_bits_and_uniforms_do_not_depend_on_their_number(
    seed: int, places: list[int], n: int, more: int
) -> None:
    position = torch.tensor(places)
    assert torch.equal(counter_rng.bits(seed, "x", position, n + more)[:, :n], counter_rng.bits(seed, "x", position, n))
    assert torch.equal(
        counter_rng.uniform(seed, "x", position, n + more)[:, :n], counter_rng.uniform(seed, "x", position, n)
    )


@given(seeds, st.lists(positions, min_size=1, max_size=8), st.data())
def test_a_sample_has_the_same_numbers_in_any_batch(seed: int, places: list[int], data: st.DataObject) -> None:
    position = torch.tensor(places)
    chosen = torch.tensor(data.draw(st.lists(st.integers(0, len(places) - 1), max_size=8)), dtype=torch.int64)
    for draw in (lambda p: counter_rng.normal(seed, "x", p, (3, 5)), lambda p: counter_rng.uniform(seed, "x", p, 3)):
        assert torch.equal(draw(position)[chosen], draw(position[chosen]))


@given(seeds, positions, st.lists(st.integers(1, 4), max_size=3))
def test_normals_have_the_requested_shape(seed: int, place: int, shape: list[int]) -> None:
    x = counter_rng.normal(seed, "x", torch.tensor([place]), tuple(shape))
    assert x.shape == (1, *shape)
    assert x.dtype == torch.float32


def test_no_positions_give_no_numbers() -> None:
    assert counter_rng.normal(0, "x", torch.arange(0), (3,)).shape == (0, 3)


def test_the_numbers_are_those_of_every_earlier_run() -> None:
    """Other numbers would change every resumed run; these are computed independently, with Python's integers."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    golden, crc = 0x9E3779B97F4A7C15, 0x6CF1FD73  # zlib.crc32(b"latent")
    stream = mix((7 << 32) + crc)
    expected = [
        [mix((mix((p * golden + stream) % 2**64) + i * golden) % 2**64) for i in (1, 2, 3)] for p in (0, 12345678901)
    ]
    found = counter_rng.bits(7, "latent", torch.tensor([0, 12345678901]), 3)
    assert [[value % 2**64 for value in row] for row in found.tolist()] == expected


@given(seeds, st.lists(positions, min_size=1, max_size=20), st.text(max_size=9))
def test_numpy_gives_the_same_bits(seed: int, some: list[int], purpose: str) -> None:
    expected = counter_rng.bits(seed, purpose, torch.tensor(some), 1)[:, 0].numpy().view(np.uint64)
    assert np.array_equal(counter_rng.first_bits(seed, purpose, np.array(some, dtype=np.uint64)), expected)


def test_rows_have_equal_numbers_only_if_they_are_equal() -> None:
    rows = torch.randint(0, 3, (2000, 6), generator=torch.Generator().manual_seed(0))
    _, classes = torch.unique(rows, dim=0, return_inverse=True)
    hashed = counter_rng.hash_rows(rows)
    assert torch.equal(hashed[:, None] == hashed, classes[:, None] == classes)


@given(seeds, st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=5))
def test_numbers_that_are_made_together_are_those_that_are_made_separately(
    seed: int, sizes: list[tuple[int, int, int]]
) -> None:
    requests = [
        counter_rng.Request(f"purpose {number}", 7 * number + torch.arange(rows), shape)
        for number, (rows, *shape) in enumerate(sizes)
    ]
    together = counter_rng.normals_together(seed, requests, torch.device("cpu"))
    for own, request in zip(together, requests, strict=True):
        alone = counter_rng.normal(seed, request.purpose, request.position, request.shape)
        assert own.shape == alone.shape and torch.equal(own, alone)


def test_numbers_are_made_together_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter_rng, "MAX_TOGETHER", 100)
    requests = [counter_rng.Request("x", torch.arange(rows), (10,)) for rows in (4, 8, 8, 9, 300, 1, 1)]
    assert [[len(r.position) for r in group] for group in counter_rng._groups(requests)] == [
        [4, 8, 8],
        [9],
        [300],
        [1, 1],
    ]
