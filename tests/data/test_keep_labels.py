"""Few labels: a fraction of the samples keeps its labels, the others are trained on without."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgen.data.mixture import keep_labels
from mtgen.schema import COMPONENTS

N = 4000


def kept(fractions: dict[str, float], seed: int, complete: float = 1.0) -> dict[str, Any]:
    """`present` after `keep_labels`, of samples of which a fraction `complete` has all components."""
    present = np.random.default_rng(0).random(N) < complete

    class Samples(SimpleNamespace):
        def __len__(self) -> int:
            return N

    samples: Any = Samples(present={component: present.copy() for component in COMPONENTS})
    keep_labels(samples, fractions, seed)
    return {component: np.asarray(column) for component, column in samples.present.items()}


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**31 - 1))
def test_a_smaller_fraction_is_a_subset_of_a_larger_one(one: float, other: float, seed: int) -> None:
    small, large = (kept({"mask": fraction}, seed)["mask"] for fraction in sorted((one, other)))
    assert not np.any(small & ~large)


@given(st.floats(0, 1), st.integers(0, 2**31 - 1))
def test_exactly_that_fraction_is_kept_and_nothing_is_invented(fraction: float, seed: int) -> None:
    found, present = kept({"boxes": fraction}, seed, 0.5)["boxes"], kept({}, seed, 0.5)["boxes"]
    assert not np.any(found & ~present)
    number = present.sum()
    assert abs(found.sum() - fraction * number) <= 5.5 * (fraction * (1 - fraction) * number) ** 0.5 + 1e-9


@pytest.mark.parametrize("component", COMPONENTS)
def test_other_components_are_kept(component: str) -> None:
    found = kept({component: 0.1, "tags": 0.1 if component == "tags" else 1.0}, 3)
    assert [name for name in COMPONENTS if found[name].all()] == [name for name in COMPONENTS if name != component]


def test_hidden_boxes_do_not_show_through_the_tags_that_they_imply() -> None:
    found = kept({"boxes": 0.1}, 3)
    assert 0 < found["boxes"].sum() < N and np.array_equal(found["tags"], found["boxes"])


def test_which_samples_keep_theirs_is_a_function_of_seed_and_component() -> None:
    fractions = {"class": 0.5, "mask": 0.5}
    first, again, other = kept(fractions, 3), kept(fractions, 3), kept(fractions, 4)
    assert all(np.array_equal(first[name], again[name]) for name in fractions)
    assert not np.array_equal(first["class"], other["class"])
    assert abs(np.corrcoef(first["class"], first["mask"])[0, 1]) < 5.5 * N**-0.5


@pytest.mark.parametrize(("fraction", "number"), [(0.0, 0), (1.0, N)])
def test_none_and_all_are_exact(fraction: float, number: int) -> None:
    assert kept({"sound": fraction}, 1)["sound"].sum() == number
