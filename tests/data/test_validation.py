"""What training and validation read: a split of its own, or held-out samples; never the test split."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small_shards import Write

from mtgen.config import DataConfig
from mtgen.data.index import open_index
from mtgen.data.mixture import open_samples
from mtgen.data.orders.policy import OrderPolicy
from mtgen.data.validation import (
    HELD_OUT_FRACTION,
    MAX_HELD_OUT_SAMPLES,
    MIN_HELD_OUT_SHARDS,
    held_out_rows,
    open_training,
    open_validation,
    validates_on_test,
    without_held_out,
)
from mtgen.errors import DataError


def keys(samples: Any) -> list[str]:
    return [samples.key(i) for i in range(len(samples))]


def both(data: DataConfig) -> tuple[list[str], list[str]]:
    return keys(open_training(data)), keys(open_validation(data))


@pytest.fixture
def with_val(write: Write, sample: Any) -> Path:
    splits = {"train": range(20), "val": range(20, 26), "test": range(26, 30), "more": range(30, 33)}
    return write({name: [[sample(i) for i in numbers]] for name, numbers in splits.items()}, name="with-val")


def test_a_split_val_is_validated_on(with_val: Path) -> None:
    train, validation = both(DataConfig(path=str(with_val)))
    assert (len(train), validation) == (20, [f"s{i:05d}" for i in range(20, 26)])


def test_any_split_can_be_validated_on(with_val: Path) -> None:
    train, validation = both(DataConfig(path=str(with_val), val_split="more"))
    assert (len(train), validation) == (20, [f"s{i:05d}" for i in range(30, 33)])


@pytest.mark.parametrize("use", [{"test_split": "val"}, {"train_split": "val"}])
def test_a_split_val_that_is_used_otherwise_is_not_validated_on(with_val: Path, use: dict[str, str]) -> None:
    train, validation = both(DataConfig(path=str(with_val), **use))
    whole = keys(open_samples(DataConfig(path=str(with_val), **use), "train"))
    assert sorted(train + validation) == whole and len(validation) == 1


def test_without_a_split_some_training_samples_are_held_out(numbered: Path) -> None:
    train, validation = both(DataConfig(path=str(numbered)))
    assert len(validation) == 3 and sorted(train + validation) == keys(open_index(numbered, "train"))


def test_held_out_samples_are_the_same_in_every_run_and_only_few_remain_of_few(numbered: Path) -> None:
    assert both(DataConfig(path=str(numbered))) == both(DataConfig(path=str(numbered), max_samples=5))
    for total in range(2, 60):
        assert 1 <= len(held_out_rows(np.array([total]))) < total


@pytest.mark.parametrize("sizes", [[1000] * 4, [7] * 500, [0, 100_000, 0], [20_000] * 100])
def test_the_number_of_held_out_samples_and_of_shards_that_they_are_in(sizes: list[int]) -> None:
    rows = held_out_rows(np.array(sizes))
    assert len(rows) == min(round(HELD_OUT_FRACTION * sum(sizes)), MAX_HELD_OUT_SAMPLES)
    assert (np.diff(rows) > 0).all() and rows[0] >= 0 and rows[-1] < sum(sizes)
    shards = np.unique(np.searchsorted(np.cumsum(sizes), rows, side="right"))
    assert len(shards) >= min(MIN_HELD_OUT_SHARDS, np.count_nonzero(sizes))
    assert len(shards) <= max(MIN_HELD_OUT_SHARDS, 4 * len(rows) / max(min(filter(None, sizes)), 1) + 1)


@pytest.mark.parametrize("chosen", [True, False])
def test_a_subset_reads_its_own_samples(numbered: Path, chosen: bool) -> None:
    whole = open_index(numbered, "train")
    rows = np.array([3, 34, 35, 59])
    part = whole.subset(rows) if chosen else whole.without(np.delete(np.arange(60), rows))
    assert (len(part), part.whole, part.sizes.tolist()) == (4, 60, [2, 2])
    assert part.fingerprint == whole.fingerprint and part.formats == {"png": 4}
    for number, row in enumerate(rows):
        assert part.key(number) == whole.key(row) and part.shard(number) == whole.shard(row)
        assert part.read(number, "image") == whole.read(row, "image") and part.label[number] == whole.label[row]
        assert part.present["class"][number] == whole.present["class"][row]
    seen = part.order(OrderPolicy("windowed", 0, 1)).sample(np.arange(8))
    assert sorted(seen[:4]) == sorted(seen[4:]) == [0, 1, 2, 3]


def test_each_data_set_of_a_mixture_has_its_own_validation(numbered: Path, with_val: Path) -> None:
    mixture: list[dict[str, Any]] = [{"path": str(numbered)}, {"path": str(with_val)}]
    data = DataConfig.model_validate({"mixture": mixture})
    train, validation = open_training(data), open_validation(data)
    assert (len(train), train.whole, len(validation)) == (57 + 20, 60 + 20, 3 + 6)
    given = DataConfig.model_validate({"mixture": [mixture[0], {**mixture[1], "val_split": "more"}]})
    assert len(open_validation(given)) == 3 + 3


def test_what_was_trained_on_all_samples_is_validated_on_the_test_split(numbered: Path, with_val: Path) -> None:
    one = without_held_out(DataConfig(path=str(numbered)))
    assert (one.val_split, len(open_training(one)), validates_on_test(one)) == ("test", 60, True)
    other = without_held_out(DataConfig(path=str(with_val)))
    assert (other.val_split, validates_on_test(other)) == ("val", False)
    mixture = [{"path": str(numbered)}, {"path": str(with_val), "val_split": "more"}]
    several = without_held_out(DataConfig.model_validate({"mixture": mixture}))
    assert [source.val_split for source in several.mixture] == ["test", "more"] and several.val_split is None


def test_one_sample_cannot_be_held_out(write: Write, sample: Any) -> None:
    data = DataConfig(path=str(write({"train": [[sample(0)]]})))
    with pytest.raises(DataError, match="split 'train' has one sample.*set data.val_split=train"):
        open_training(data)
    assert both(data.model_copy(update={"val_split": "train"})) == (["s00000"], ["s00000"])


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_neither_reads_the_test_split(numbered: Path, damage: str) -> None:
    (numbered / "test-000000.tar").unlink() if damage == "missing" else (numbered / "test-000000.tar").write_bytes(b"x")
    train, validation = both(DataConfig(path=str(numbered)))
    assert (len(train), len(validation)) == (57, 3)
    with pytest.raises(DataError, match="test-000000.tar"):
        open_samples(DataConfig(path=str(numbered)), "test")
