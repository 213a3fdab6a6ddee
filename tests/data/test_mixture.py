"""A mixture trains on several data sets as one; labels are matched by class name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.loading import load

from mtgen.config import DataConfig, MixtureConfig
from mtgen.data.mixture import Mixture, open_samples
from mtgen.data.orders.lanes import Lanes
from mtgen.data.orders.policy import OrderPolicy
from mtgen.schema import COMPONENTS

Write = Callable[..., Path]
Sample = Callable[..., dict[str, Any]]


@pytest.fixture
def mixture(write: Write, sample: Sample) -> Mixture:
    """Classes cat, dog and dog, bird; 6 and 4 samples; sample i of each has class and mask value i % 2."""
    sources = []
    for name, classes, n, weight in (("one", ["cat", "dog"], 6, 3.0), ("two", ["dog", "bird"], 4, 1.0)):
        samples = [sample(i % 2, __key__=f"{name}{i}") for i in range(n)]
        half = n // 2
        folder = write(
            {"train": [samples[:half], samples[half:]]},
            name=name,
            named={"classes": classes, "mask_classes": ["background", classes[1]]},
        )
        sources.append(MixtureConfig(path=str(folder), weight=weight))
    found = open_samples(DataConfig(mixture=sources), "train")
    assert isinstance(found, Mixture)
    return found


def test_classes_are_merged_by_name(mixture: Mixture) -> None:
    assert mixture.card.classes == ["cat", "dog", "bird"]
    assert mixture.card.mask_classes == ["background", "dog", "bird"]
    assert mixture.label[:].tolist() == [0, 1, 0, 1, 0, 1, 1, 2, 1, 2]
    assert mixture.class_table(0).tolist() == [0, 1] and mixture.class_table(6).tolist() == [1, 2]
    assert mixture.mask_table(9)[[0, 1, 2, 255]].tolist() == [0, 2, -1, 255]


def test_a_sample_equals_that_of_its_data_set(mixture: Mixture) -> None:
    for i in range(10):
        member, own = (mixture.members[0], i) if i < 6 else (mixture.members[1], i - 6)
        assert mixture.key(i) == member.key(own) and mixture.name(i) == member.name(own)
        assert mixture.read(i, "image") == member.read(own, "image")
        assert all(mixture.present[c][i] == member.present[c][own] for c in COMPONENTS)


GLOBAL = OrderPolicy("global", seed=7)


@pytest.mark.parametrize(
    "policy", [GLOBAL, OrderPolicy("windowed", 7, window=1), OrderPolicy("lanes", 7, window=2, lanes=Lanes(2, 500))]
)
def test_proportions_are_exact(policy: OrderPolicy, mixture: Mixture) -> None:
    samples = mixture.order(policy).sample(np.arange(4000))
    if policy.name == "lanes":  # each lane's first thousand places, then its second
        samples = samples.reshape(2, 2, 2, 500).swapaxes(1, 2).ravel()
    assert (samples < 6).reshape(4, 1000).sum(1).tolist() == [750] * 4
    assert set(np.bincount(samples, minlength=10)[:6]) == {500} and set(np.bincount(samples, minlength=10)[6:]) == {250}


def test_a_batch_has_the_merged_class_numbers(mixture: Mixture) -> None:
    order = mixture.order(GLOBAL)
    with load(mixture, batch_size=20, seed=7, order=order) as loader:
        batch, samples = next(loader), order.sample(np.arange(20))
    assert batch.label.tolist() == mixture.label[samples].tolist()
    assert batch.mask[:, 0, 0].tolist() == [[0, 1, 0, 1, 0, 1, 0, 2, 0, 2][i] for i in samples]


def test_the_fingerprint_depends_on_all_members_and_their_order(mixture: Mixture) -> None:
    reversed_mixture = Mixture(mixture.members[::-1], mixture.weights)
    assert len({mixture.fingerprint, reversed_mixture.fingerprint, mixture.members[0].fingerprint}) == 3


def test_a_batch_has_the_data_set_of_each_sample(mixture: Mixture) -> None:
    order = mixture.order(GLOBAL)
    with load(mixture, batch_size=20, order=order) as loader:
        batch, samples = next(loader), order.sample(np.arange(20))
    assert mixture.domains == ["one", "two"]
    assert batch.domain is not None and batch.domain.dtype == torch.int64
    assert batch.domain.tolist() == [int(i >= 6) for i in samples]
    assert batch.rows(slice(3, 9)).domain.tolist() == batch.domain.tolist()[3:9]
    assert batch.rows(torch.tensor([4, 0])).domain.tolist() == [batch.domain[4], batch.domain[0]]
    assert batch.to("cpu").domain.tolist() == batch.domain.tolist() and batch.to("meta").domain.device.type == "meta"


def test_two_data_sets_of_one_name_are_two_domains(write: Write, sample: Sample) -> None:
    folder = str(write({"train": [[sample(0)]], "test": [[sample(1)]]}, name="digits"))
    found = open_samples(
        DataConfig(mixture=[MixtureConfig(path=folder), MixtureConfig(path=folder, train_split="test")]), "train"
    )
    assert found.domains == ["digits", "digits 2"] and found.domain(np.arange(2)).tolist() == [0, 1]


def test_a_damaged_sample_is_replaced_by_one_of_the_same_data_set(write: Write, sample: Sample) -> None:
    damaged = {2: b"\xff"}
    folders = [
        write({"train": [[sample(i, txt=damaged.get(i, b"x")) for i in range(4)]]}, name=name)
        for name in ("one", "two")
    ]
    found = open_samples(DataConfig(mixture=[MixtureConfig(path=str(folder)) for folder in folders]), "train")
    order = found.order(GLOBAL)
    with load(found, batch_size=200, order=order, components=("caption",), on_damage="skip") as loader:
        batch = next(loader)
    assert len({position for position, _ in loader.damaged}) == 50
    assert batch.domain.tolist() == found.domain(order.sample(np.arange(200))).tolist()
