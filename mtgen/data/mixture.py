"""Several data sets as one: their samples numbered one data set after the other, their classes united by name."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mtgen.config import DataConfig, MixtureConfig
from mtgen.data.index import Index, open_index
from mtgen.data.index_build import IndexProgress
from mtgen.data.sampler import InterleavedOrder, SampleOrder
from mtgen.data.shard_scan import Problem
from mtgen.schema import COMPONENTS, IGNORE_INDEX, DatasetCard, Split
from mtgen.utils import counter_rng


class Samples(Protocol):
    """What can be read and learned from: an `Index`, or a `Mixture` of several."""

    folder: str
    split: str
    card: DatasetCard
    label: NDArray[np.int64]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    present: dict[str, NDArray[np.bool_]]
    problems: list[Problem]
    remote: bool
    domains: list[str]

    def __len__(self) -> int: ...
    def key(self, i: int) -> str:
        """The sample's key."""
        ...

    def shard(self, i: int) -> str:
        """Name of the shard that holds the sample."""
        ...

    def name(self, i: int) -> str:
        """Where the sample is, for errors."""
        ...

    def mask_table(self, i: int) -> NDArray[np.int64]:
        """`[256]`: a mask value as stored with the sample -> mask class; 255: unknown; -1: no such class."""
        ...

    def class_table(self, i: int) -> NDArray[np.int64]:
        """`[K]`: a class number as stored with the sample -> class."""
        ...

    def read(self, i: int, component: str) -> bytes:
        """The bytes of a component of the sample."""
        ...

    def prefetch(self, sample: NDArray[np.int64]) -> None:
        """Begin to fetch what these samples lie in."""
        ...

    def domain(self, sample: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]`: which of `domains` samples are from."""
        ...

    def order(self, policy: str, window: int, seed: int) -> SampleOrder:
        """Which sample stands at a position."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that is learned from."""
        ...


class Mixture:
    """The splits of several data sets; the interface is that of `Index`, numbers of classes are those of the united card.

    Args:
        members: the splits, in the order of their numbers.
        weights: their shares of the training samples; only their ratios matter.
    """

    def __init__(self, members: Sequence[Index], weights: Sequence[float]) -> None:
        self.members = list(members)
        self.weights = list(weights)
        cards = [member.card for member in members]
        self.card = DatasetCard(
            name=" + ".join(card.name for card in cards),
            classes=_united([card.classes for card in cards]),
            mask_classes=_united([card.mask_classes for card in cards], first="background"),
            domains=_distinct([card.name for card in cards]),
            source="; ".join(card.source for card in cards),
            licence="; ".join(card.licence for card in cards),
            splits={
                members[0].split: Split(samples=sum(map(len, members)), shards=[s for m in members for s in m.shards])
            },
        )
        self.folder = " + ".join(member.folder for member in members)
        self.split = members[0].split
        self.remote = any(member.remote for member in members)
        self.domains = self.card.domains
        self.problems = [problem for member in members for problem in member.problems]
        self._begin = np.cumsum([0, *map(len, members)])
        self._classes = [_numbers(card.classes, self.card.classes) for card in cards]
        self._masks = [self._mask_numbers(card) for card in cards]
        self.label: NDArray[np.int64] = np.concatenate(
            [np.append(table, -1)[member.label] for table, member in zip(self._classes, members, strict=True)]
        )
        self.width: NDArray[np.int32] = np.concatenate([member.width for member in members])
        self.height: NDArray[np.int32] = np.concatenate([member.height for member in members])
        self.present: dict[str, NDArray[np.bool_]] = {
            c: np.concatenate([member.present[c] for member in members]) for c in COMPONENTS
        }

    def _mask_numbers(self, card: DatasetCard) -> NDArray[np.int64]:
        table = np.full(256, -1, dtype=np.int64)
        table[: len(card.mask_classes)] = _numbers(card.mask_classes, self.card.mask_classes)
        table[[card.ignore_index, IGNORE_INDEX]] = IGNORE_INDEX
        return table

    def _which(self, i: int) -> tuple[int, int]:
        """The data set that holds sample `i`, and the sample's number in it."""
        member = int(np.searchsorted(self._begin, i, side="right")) - 1
        return member, int(i - self._begin[member])

    def __len__(self) -> int:
        return len(self.label)

    def key(self, i: int) -> str:
        """The sample's key in its own data set."""
        member, own = self._which(i)
        return self.members[member].key(own)

    def shard(self, i: int) -> str:
        """File name of the shard that holds the sample."""
        member, own = self._which(i)
        return self.members[member].shard(own)

    def name(self, i: int) -> str:
        """Where the sample is, for errors."""
        member, own = self._which(i)
        return self.members[member].name(own)

    def mask_table(self, i: int) -> NDArray[np.int64]:
        """`[256]`: see `Index.mask_table`; numbers are those of the united card."""
        return self._masks[self._which(i)[0]]

    def class_table(self, i: int) -> NDArray[np.int64]:
        """`[K]`: a class number that is stored with sample `i` -> its number in the united card."""
        return self._classes[self._which(i)[0]]

    def read(self, i: int, component: str) -> bytes:
        """See `Index.read`."""
        member, own = self._which(i)
        return self.members[member].read(own, component)

    def prefetch(self, sample: NDArray[np.int64]) -> None:
        """See `Index.ahead`."""
        which = self.domain(sample)
        for number, member in enumerate(self.members):
            if member.remote:
                member.prefetch(sample[which == number] - self._begin[number])

    def domain(self, sample: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]`: which data set samples are from, by its number in `domains`."""
        return np.searchsorted(self._begin, sample, side="right").astype(np.int64) - 1

    def order(self, policy: str, window: int, seed: int) -> SampleOrder:
        """Exact shares of each data set, each in an order and with epochs of its own."""
        orders = [
            member.order(policy, window, seed, f"order of {number}") for number, member in enumerate(self.members)
        ]
        return InterleavedOrder(orders, [len(member) for member in self.members], self.weights, seed)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the fingerprints of all data sets in their order."""
        return hashlib.sha256(" ".join(member.fingerprint for member in self.members).encode()).hexdigest()


def _distinct(names: list[str]) -> list[str]:
    """A name that comes again gets a number behind it: two data sets are two domains."""
    return [
        name if (before := names[:number].count(name)) == 0 else f"{name} {before + 1}"
        for number, name in enumerate(names)
    ]


def _united(names: list[list[str]], first: str = "") -> list[str]:
    found = list(dict.fromkeys(name for some in names for name in some))
    return sorted(found, key=lambda name: name != first)


def _numbers(own: list[str], united: list[str]) -> NDArray[np.int64]:
    return np.array([united.index(name) for name in own], dtype=np.int64)


def keep_labels(samples: Samples, shares: Mapping[Any, float], seed: int) -> None:
    """Forget what all but a share of the samples carry: component -> share. Which ones is a function of seed, component and number.

    A smaller share is a part of a larger one.
    """
    number = torch.arange(len(samples))
    for component, share in shares.items():
        if share < 1:
            kept = counter_rng.uniform(seed, f"labelled {component}", number, 1)[:, 0].numpy() < share
            samples.present[component] = samples.present[component] & kept


def open_samples(data: DataConfig, part: str, progress: IndexProgress | None = None) -> Samples:
    """What the configuration names to train on (`part="train"`) or to evaluate on ("test"): one data set, or a mixture of several.

    Raises:
        DataError: anything that `open_index` raises.
    """
    shares = data.mixture or [MixtureConfig(path=str(data.path))]
    members = [
        open_index(
            share.path,
            getattr(share, f"{part}_split") or getattr(data, f"{part}_split"),
            progress,
            on_damage=data.on_damage,
            damage_limit=data.damage_limit,
            cache=data.cache_gb,
        )
        for share in shares
    ]
    return Mixture(members, [share.weight for share in shares]) if data.mixture else members[0]
