"""Several data sets as one: their samples are concatenated, classes of the same name are merged."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mtgen.config import DataConfig, MixtureConfig
from mtgen.data.columns import ROWS_AT_ONCE, BitColumn, Column, JoinedColumn
from mtgen.data.dataset_card import read_card_text
from mtgen.data.index import Index, open_index
from mtgen.data.index_build import IndexProgress
from mtgen.data.orders.permutation import SampleOrder
from mtgen.data.orders.policy import OrderPolicy
from mtgen.data.shard_scan import Problem
from mtgen.schema import COMPONENTS, IGNORE_INDEX, DatasetCard, Split
from mtgen.storage.source import is_url, open_source
from mtgen.utils import counter_rng


class Samples(Protocol):
    """What a loader can read: an `Index`, or a `Mixture` of several."""

    folder: str
    split: str
    card: DatasetCard
    label: Column
    width: Column
    height: Column
    present: dict[str, Column]
    problems: list[Problem]
    remote: bool
    domains: list[str]
    whole: int
    sizes: NDArray[np.int64]

    def __len__(self) -> int: ...
    def key(self, i: int) -> str:
        """The sample's key."""
        ...

    def shard(self, i: int) -> str:
        """Name of the shard that holds the sample."""
        ...

    def name(self, i: int) -> str:
        """The sample's shard and key, for errors."""
        ...

    def mask_table(self, i: int) -> NDArray[np.int64]:
        """`[256]`: mask value as stored in the sample -> mask class; 255: unknown; -1: not in the card."""
        ...

    def class_table(self, i: int) -> NDArray[np.int64]:
        """`[K]`: class number as stored in the sample -> class number of `card`."""
        ...

    def read(self, i: int, component: str) -> bytes:
        """Read the bytes of a component of the sample."""
        ...

    def prefetch(self, sample: NDArray[np.int64]) -> None:
        """Start downloading the shards of these samples."""
        ...

    def domain(self, sample: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]`: the number of each sample's data set in `domains`."""
        ...

    def order(self, policy: OrderPolicy) -> SampleOrder:
        """The samples in the order of a policy."""
        ...

    @property
    def num_bytes(self) -> int:
        """Size of all shards, bytes."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that is trained on."""
        ...


class Mixture:
    """The splits of several data sets, with the interface of `Index`. Class numbers are those of the merged card.

    Args:
        members: the splits, in the order of their numbers.
        weights: their proportions in the training samples; only the ratios matter.
    """

    def __init__(self, members: Sequence[Index], weights: Sequence[float]) -> None:
        self.members = list(members)
        self.weights = list(weights)
        cards = [member.card for member in members]
        self.card = DatasetCard(
            name=" + ".join(card.name for card in cards),
            classes=_merged([card.classes for card in cards]),
            mask_classes=_merged([card.mask_classes for card in cards], first="background"),
            domains=_unique([card.name for card in cards]),
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
        self.whole = sum(member.whole for member in members)
        self.problems = [problem for member in members for problem in member.problems]
        self.sizes: NDArray[np.int64] = np.concatenate([member.sizes for member in members])
        self._begin = np.cumsum([0, *map(len, members)])
        self._classes = [_numbers(card.classes, self.card.classes) for card in cards]
        self._masks = [self._mask_numbers(card) for card in cards]
        labels = [np.append(table, -1) for table in self._classes]
        self.label: Column = JoinedColumn([member.label for member in members], labels)
        self.width: Column = JoinedColumn([member.width for member in members])
        self.height: Column = JoinedColumn([member.height for member in members])
        self.present: dict[str, Column] = {
            c: JoinedColumn([member.present[c] for member in members]) for c in COMPONENTS
        }

    def _mask_numbers(self, card: DatasetCard) -> NDArray[np.int64]:
        table = np.full(256, -1, dtype=np.int64)
        table[: len(card.mask_classes)] = _numbers(card.mask_classes, self.card.mask_classes)
        table[[card.ignore_index, IGNORE_INDEX]] = IGNORE_INDEX
        return table

    def _locate(self, i: int) -> tuple[int, int]:
        """The number of the data set of sample `i`, and the sample's number in it."""
        member = int(np.searchsorted(self._begin, i, side="right")) - 1
        return member, int(i - self._begin[member])

    def __len__(self) -> int:
        return len(self.label)

    def key(self, i: int) -> str:
        """The sample's key in its own data set."""
        member, own = self._locate(i)
        return self.members[member].key(own)

    def shard(self, i: int) -> str:
        """File name of the shard that holds the sample."""
        member, own = self._locate(i)
        return self.members[member].shard(own)

    def name(self, i: int) -> str:
        """The sample's shard and key, for errors."""
        member, own = self._locate(i)
        return self.members[member].name(own)

    def mask_table(self, i: int) -> NDArray[np.int64]:
        """`[256]`: see `Index.mask_table`; mask classes are those of the merged card."""
        return self._masks[self._locate(i)[0]]

    def class_table(self, i: int) -> NDArray[np.int64]:
        """`[K]`: class number as stored in sample `i` -> class number of the merged card."""
        return self._classes[self._locate(i)[0]]

    def read(self, i: int, component: str) -> bytes:
        """See `Index.read`."""
        member, own = self._locate(i)
        return self.members[member].read(own, component)

    def prefetch(self, sample: NDArray[np.int64]) -> None:
        """See `Index.prefetch`."""
        domain = self.domain(sample)
        for number, member in enumerate(self.members):
            if member.remote:
                member.prefetch(sample[domain == number] - self._begin[number])

    def domain(self, sample: NDArray[np.int64]) -> NDArray[np.int64]:
        """`[B]`: the number of each sample's data set in `domains`."""
        return np.searchsorted(self._begin, sample, side="right").astype(np.int64) - 1

    def order(self, policy: OrderPolicy) -> SampleOrder:
        """The data sets in exact proportions, each with its own order and epochs."""
        return policy.mixed([member.sizes for member in self.members], self.weights)

    @property
    def num_bytes(self) -> int:
        """Size of the shards of all data sets, bytes."""
        return sum(member.num_bytes for member in self.members)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the fingerprints of all data sets, in order."""
        return hashlib.sha256(" ".join(member.fingerprint for member in self.members).encode()).hexdigest()


def _unique(names: list[str]) -> list[str]:
    """Append a number to names that occur again: two data sets of one name are two domains."""
    return [
        name if (before := names[:number].count(name)) == 0 else f"{name} {before + 1}"
        for number, name in enumerate(names)
    ]


def _merged(lists: list[list[str]], first: str = "") -> list[str]:
    """The names of all lists without duplicates, `first` at the front."""
    names = list(dict.fromkeys(name for names in lists for name in names))
    return sorted(names, key=lambda name: name != first)


def _numbers(own: list[str], merged: list[str]) -> NDArray[np.int64]:
    return np.array([merged.index(name) for name in own], dtype=np.int64)


def keep_labels(samples: Samples, fractions: Mapping[Any, float], seed: int) -> None:
    """Hide the labels of all but a fraction of the samples.

    Which samples keep theirs is a function of seed, component and sample number; a smaller fraction is a subset of a
    larger one.

    Boxes name everything in their image: hidden boxes hide its tags too, unless `fractions` has "tags".

    Args:
        samples: changed in place.
        fractions: component -> fraction of the samples that keep it, 0 to 1.
    """

    def kept(component: str, name: str, fraction: float) -> Iterator[NDArray[np.bool_]]:
        for begin in range(0, len(samples), ROWS_AT_ONCE):
            present = samples.present[name][begin : begin + ROWS_AT_ONCE]
            number = torch.arange(begin, begin + len(present))
            random = counter_rng.uniform(seed, f"labelled {component}", number, 1)[:, 0].numpy()
            yield present & (random < fraction)

    for component, fraction in fractions.items():
        if fraction < 1:
            hidden = ["boxes", "tags"] if component == "boxes" and "tags" not in fractions else [component]
            for name in hidden:
                samples.present[name] = BitColumn(kept(component, name, fraction))


def card_texts(data: DataConfig) -> dict[str, bytes]:
    """URL of each configured data set -> the content of its `dataset.json`: all that a start asks a store for.

    Raises:
        DataError: it does not exist, or the store does not answer.
    """
    paths = dict.fromkeys(source.path for source in sources_of(data))
    return {path: read_card_text(open_source(path, data.patience)) for path in paths if is_url(path)}


def open_samples(data: DataConfig, part: str, progress: IndexProgress | None = None) -> Samples:
    """Open a whole split of the configured data, "train" or "test": of one data set, or of a mixture.

    Training and validation read parts of them, see `mtgen.data.validation`.

    Args:
        cards: see `card_texts`; default: every data set's `dataset.json` is read.

    Raises:
        DataError: anything that `open_index` raises.
    """
    members = [open_member(data, source, str(split_of(data, source, part)), progress) for source in sources_of(data)]
    return combine(data, members)


def sources_of(data: DataConfig) -> list[MixtureConfig]:
    """The data sets that are configured; one for `data.path`."""
    return data.mixture or [MixtureConfig(path=str(data.path))]


def split_of(data: DataConfig, source: MixtureConfig, part: str) -> str | None:
    """The split that a data set uses as "train", "val" or "test"; `None`: no split for "val" is given."""
    split: str | None = getattr(source, f"{part}_split") or getattr(data, f"{part}_split")
    return split


def open_member(
    data: DataConfig,
    source: MixtureConfig,
    split: str,
    progress: IndexProgress | None = None,
    cards: Mapping[str, bytes] | None = None,
) -> Index:
    """Open a split of one of the configured data sets; errors are those of `open_index`.

    Args:
        cards: see `card_texts`; default: the data set's `dataset.json` is read.
    """
    return open_index(
        source.path,
        split,
        progress,
        on_damage=data.on_damage,
        damage_limit=data.damage_limit,
        cache=data.cache_gb,
        patience=data.patience,
        card_text=(cards or {}).get(source.path),
    )


def combine(data: DataConfig, members: Sequence[Index]) -> Samples:
    """The mixture of the data sets; the only one itself if none is configured."""
    return Mixture(members, [source.weight for source in data.mixture]) if data.mixture else members[0]
