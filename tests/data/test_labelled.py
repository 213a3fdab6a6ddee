"""Few labels: a share of the samples keeps what it carries, the others train without."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgen.data.mixture import keep_labels
from mtgen.schema import COMPONENTS

N = 4000


def kept(shares: dict[str, float], seed: int, has: float = 1.0) -> dict[str, Any]:
    """Who has what, of samples of which a share `has` everything."""
    there = np.random.default_rng(0).random(N) < has

    class Samples(SimpleNamespace):
        def __len__(self) -> int:
            return N

    samples: Any = Samples(present={component: there.copy() for component in COMPONENTS})
    keep_labels(samples, shares, seed)
    return samples.present


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**31 - 1))
def test_a_smaller_share_is_a_part_of_a_larger_one(one: float, other: float, seed: int) -> None:
    small, large = (kept({"mask": share}, seed)["mask"] for share in sorted((one, other)))
    assert not np.any(small & ~large)


@given(st.floats(0, 1), st.integers(0, 2**31 - 1))
def test_just_that_share_is_kept_and_nothing_is_invented(share: float, seed: int) -> None:
    found, there = kept({"boxes": share}, seed, 0.5)["boxes"], kept({}, seed, 0.5)["boxes"]
    assert not np.any(found & ~there)
    number = there.sum()
    assert abs(found.sum() - share * number) <= 5.5 * (share * (1 - share) * number) ** 0.5 + 1e-9


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_others_keep_what_they_have(component: str) -> None:
    found = kept({component: 0.1}, 3)
    assert [name for name in COMPONENTS if found[name].all()] == [name for name in COMPONENTS if name != component]


def test_who_keeps_them_is_a_function_of_the_seed_and_the_component() -> None:
    shares = {"class": 0.5, "mask": 0.5}
    first, again, other = kept(shares, 3), kept(shares, 3), kept(shares, 4)
    assert all(np.array_equal(first[name], again[name]) for name in shares)
    assert not np.array_equal(first["class"], other["class"])
    assert abs(np.corrcoef(first["class"], first["mask"])[0, 1]) < 5.5 * N**-0.5


@pytest.mark.parametrize(("share", "number"), [(0.0, 0), (1.0, N)])
def test_none_and_all_are_exact(share: float, number: int) -> None:
    assert kept({"sound": share}, 1)["sound"].sum() == number
