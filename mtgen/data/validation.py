"""What training reads, and what its snapshots, alarms and best checkpoints are measured on: never the test split.

A data set without a split for validation has some samples of its training split held out.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from mtgen.config import DataConfig
from mtgen.data.dataset_card import card_of, read_card
from mtgen.data.index import Index
from mtgen.data.index_build import IndexProgress
from mtgen.data.mixture import Samples, combine, open_member, sources_of, split_of
from mtgen.errors import DataError
from mtgen.utils import counter_rng

VALIDATION_SPLIT = "val"
"""The split for validation, where a data set has one and training and evaluation do not use it otherwise."""

HELD_OUT_FRACTION = 0.05
MAX_HELD_OUT_SAMPLES = 2_000
"""Most samples that are held out of a data set: a fraction of 0.5 then has a standard error of 0.011."""

MIN_HELD_OUT_SHARDS, POOL_FACTOR = 8, 4
"""Held-out samples are chosen from at least so many shards, with at least so many times as many samples: enough for a
fair choice, and few enough to download."""


def open_training(
    data: DataConfig, progress: IndexProgress | None = None, cards: Mapping[str, bytes] | None = None
) -> Samples:
    """The training split of the configured data, without the samples that are held out.

    Args:
        cards: see `mixture.card_texts`.

    Raises:
        DataError: anything that `open_index` raises, or too few samples.
    """
    return combine(data, [_open_part(data, number, False, progress, cards) for number in range(len(sources_of(data)))])


def open_validation(data: DataConfig) -> Samples:
    """What validation reads: `data.val_split`, else the split "val", else samples held out of the training split.

    Raises:
        DataError: anything that `open_index` raises, or too few samples.
    """
    return combine(data, [_open_part(data, number, True) for number in range(len(sources_of(data)))])


def without_held_out(data: DataConfig) -> DataConfig:
    """The data of a run that trains on its whole training split: it is validated on the test split instead.

    This is how every run was trained before there was `data.val_split`.
    """
    splits = [
        validation_split(data, number) or split_of(data, source, "test")
        for number, source in enumerate(sources_of(data))
    ]
    if not data.mixture:
        return data.model_copy(update={"val_split": splits[0]})
    members = [
        source.model_copy(update={"val_split": split}) for source, split in zip(data.mixture, splits, strict=True)
    ]
    return data.model_copy(update={"mixture": members})


def validates_on_test(data: DataConfig) -> bool:
    """Whether validation reads a split that evaluation reads, so that what is chosen by it flatters the run."""
    return any(split_of(data, source, "val") == split_of(data, source, "test") for source in sources_of(data))


def validation_split(data: DataConfig, number: int = 0, cards: Mapping[str, bytes] | None = None) -> str | None:
    """The split that a data set is validated on; `None`: samples of its training split are held out."""
    source = sources_of(data)[number]
    if (given := split_of(data, source, "val")) is not None:
        return given
    in_use = {split_of(data, source, "train"), split_of(data, source, "test")}
    text = (cards or {}).get(source.path)
    card = read_card(source.path) if text is None else card_of(source.path, text)[0]
    return VALIDATION_SPLIT if VALIDATION_SPLIT in set(card.splits) - in_use else None


def held_out_rows(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of the samples of a split that are held out, ascending, by the sizes of its shards.

    The choice is random, and the same for every run on the data: `HELD_OUT_FRACTION` of the samples, from few shards.
    """
    total = int(sizes.sum())
    count = min(max(round(HELD_OUT_FRACTION * total), 1), MAX_HELD_OUT_SAMPLES, total - 1)
    shards = _shuffled("held out of shards", np.arange(len(sizes)))
    enough = int(np.searchsorted(np.cumsum(sizes[shards]), POOL_FACTOR * count)) + 1
    begin = np.cumsum(sizes) - sizes
    chosen = shards[: max(enough, MIN_HELD_OUT_SHARDS)]
    pool = np.concatenate([np.arange(begin[shard], begin[shard] + sizes[shard]) for shard in chosen])
    return np.sort(_shuffled("held out", pool)[:count])


def _shuffled(purpose: str, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    random = counter_rng.bits(0, purpose, torch.from_numpy(numbers), 1)[:, 0]
    return numbers[random.argsort(stable=True).numpy()]


def _open_part(
    data: DataConfig,
    number: int,
    validation: bool,
    progress: IndexProgress | None = None,
    cards: Mapping[str, bytes] | None = None,
) -> Index:
    """What training or validation reads of one data set."""
    source, split = sources_of(data)[number], validation_split(data, number, cards)
    train_split = str(split_of(data, source, "train"))
    index = open_member(data, source, split if validation and split else train_split, progress, cards)
    if split is not None:
        return index
    if len(index) < 2:
        raise DataError(
            f"{index.folder}: split {train_split!r} has one sample, so that none can be held out for validation; add "
            f"samples, or set data.val_split={train_split} to validate on what is trained on"
        )
    rows = held_out_rows(index.sizes)
    return index.subset(rows) if validation else index.without(rows)
