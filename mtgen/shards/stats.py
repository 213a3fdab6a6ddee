"""What a data set holds, in numbers."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from rich.bar import Bar
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mtgen.data.audio import sound_info
from mtgen.data.boxes import annotation
from mtgen.data.dataset_card import read_card
from mtgen.data.image_io import pixels
from mtgen.data.index import Index, open_index
from mtgen.schema import COMPONENTS, IGNORE_INDEX

SAMPLES_PER_CHUNK = 256
"""Samples that a thread takes at once."""

MAX_CLASSES_LISTED = 40
"""Classes that a table has lines for; of more, the most frequent are listed."""

StatsProgress = Callable[[str, int, int | None], None]
"""Called with (what is being done, done, in all)."""


@dataclass(frozen=True)
class Distribution:
    """How numbers are spread."""

    count: int
    min: float
    median: float
    mean: float
    max: float
    total: float

    @classmethod
    def of(cls, values: ArrayLike) -> "Distribution | None":
        """`None` of no numbers at all."""
        v = np.asarray(values, dtype=np.float64)
        if not v.size:
            return None
        return cls(v.size, float(v.min()), float(np.median(v)), float(v.mean()), float(v.max()), float(v.sum()))

    def text(self, form: str = ",.0f") -> str:
        """Smallest, median and largest."""
        if self.min == self.max:
            return f"{self.min:{form}}, all of them"
        return f"{self.min:{form}} to {self.max:{form}}, median {self.median:{form}}"


@dataclass(frozen=True)
class ClassFrequency:
    """One class, how often it comes, and which share of all that is."""

    number: int
    name: str
    count: int
    share: float


@dataclass(frozen=True)
class SplitStats:
    """What one split holds; what cannot be known, since no sample has it, is `None` or empty.

    Attributes:
        samples, shards: how many.
        missing: component -> samples without it.
        formats: image format -> samples.
        width, height: pixels.
        aspect: width by height.
        classes: samples of each class.
        mask: pixels of each mask class, with shares of the known ones.
        unknown: share of the masks' pixels whose class is not known.
        boxes: number of boxes in an image.
        box_classes: boxes of each class.
        labels: images that have each class in them, by their labels or boxes.
        caption: characters.
        sound: seconds.
        rates: "8,000 Hz, 1 channel" -> sounds.
        problems: kind -> how many the index knows of; their samples are left out.
        damaged: component -> how many could not be decoded and are left out.
    """

    samples: int
    shards: int
    missing: dict[str, int]
    formats: dict[str, int]
    width: Distribution | None
    height: Distribution | None
    aspect: Distribution | None
    classes: list[ClassFrequency]
    mask: list[ClassFrequency]
    unknown: float | None
    boxes: Distribution | None
    box_classes: list[ClassFrequency]
    labels: list[ClassFrequency]
    caption: Distribution | None
    sound: Distribution | None
    rates: dict[str, int]
    problems: dict[str, int]
    damaged: dict[str, int]


@dataclass
class _Counts:
    """What is counted in some samples of a split; `values` are mask values as stored."""

    classes: int
    values: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    boxes: list[int] = field(default_factory=list)
    box_classes: Counter[int] = field(default_factory=Counter)
    labels: Counter[int] = field(default_factory=Counter)
    caption: list[int] = field(default_factory=list)
    sound: list[float] = field(default_factory=list)
    rates: Counter[str] = field(default_factory=Counter)
    damaged: Counter[str] = field(default_factory=Counter)

    def add(self, index: Index, i: int) -> None:
        """Read what sample `i` has besides its image."""
        for component, count in (
            ("mask", self._mask),
            ("boxes", self._boxes),
            ("caption", self._caption),
            ("sound", self._sound),
        ):
            if index.present[component][i]:
                try:
                    count(index.read(i, component), index, i)
                except ValueError:
                    self.damaged[component] += 1

    def _mask(self, data: bytes, index: Index, i: int) -> None:
        self.values += np.bincount(pixels(data).ravel(), minlength=256)

    def _boxes(self, data: bytes, index: Index, i: int) -> None:
        stored = annotation(data, int(index.width[i]), int(index.height[i]), index.class_table(i))
        self.labels.update(set(stored.labels))
        if b'"boxes"' in data:  # labels alone say nothing of how many boxes there are
            self.boxes.append(len(stored.boxes))
            self.box_classes.update(stored.boxes[:, 4].astype(int).tolist())

    def _caption(self, data: bytes, index: Index, i: int) -> None:
        self.caption.append(len(data.decode("utf-8").strip()))

    def _sound(self, data: bytes, index: Index, i: int) -> None:
        seconds, rate, channels = sound_info(data)
        self.sound.append(seconds)
        self.rates[f"{rate:,} Hz, {channels} channel{'s' * (channels > 1)}"] += 1

    def merge(self, other: "_Counts") -> None:
        """Take in what was counted in other samples."""
        self.values += other.values
        for mine, theirs in ((self.boxes, other.boxes), (self.caption, other.caption), (self.sound, other.sound)):
            mine.extend(theirs)  # type: ignore[arg-type]
        self.box_classes.update(other.box_classes)
        self.labels.update(other.labels)
        self.rates.update(other.rates)
        self.damaged.update(other.damaged)


def stats(folder: str | Path, show: StatsProgress | None = None) -> dict[str, SplitStats]:
    """Split -> its numbers: from the index, and one pass over everything but the images; threads take samples in turn.

    Raises:
        DataError: no sample of a split can be used; a shard changes while it is read.
    """
    return {split: _stats(folder, split, show) for split in read_card(folder).splits}


def opened(folder: str | Path, split: str, show: StatsProgress | None) -> Index:
    """The index of a split for looking at it: however many samples are damaged, the others can be seen."""
    progress = None if show is None else lambda done, total: show("index", done, total)
    return open_index(folder, split, progress, on_damage="skip", damage_limit=1)


def _stats(folder: str | Path, split: str, show: StatsProgress | None) -> SplitStats:
    index = opened(folder, split, show)
    card, size = index.card, len(index)

    def part(first: int) -> _Counts:
        counts = _Counts(len(card.classes))
        for i in range(first, min(first + SAMPLES_PER_CHUNK, size)):
            counts.add(index, i)
        return counts

    counts = _Counts(len(card.classes))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for number, found in enumerate(pool.map(part, range(0, size, SAMPLES_PER_CHUNK)), 1):
            counts.merge(found)
            if show is not None:
                show(split, min(number * SAMPLES_PER_CHUNK, size), size)
    ignored = sorted({card.ignore_index, IGNORE_INDEX})
    pixel_count = int(counts.values.sum())
    unknown = int(counts.values[ignored].sum())
    counts.values[ignored] = 0
    label = index.label[index.label >= 0]
    return SplitStats(
        samples=size,
        shards=len(index.shards),
        missing={name: int((~index.present[name]).sum()) for name in COMPONENTS},
        formats=index.formats,
        width=Distribution.of(index.width),
        height=Distribution.of(index.height),
        aspect=Distribution.of(index.width / index.height),
        classes=_shares(np.bincount(label, minlength=len(card.classes)).tolist(), card.classes) if len(label) else [],
        mask=_shares(counts.values.tolist(), card.mask_classes) if pixel_count else [],
        unknown=unknown / pixel_count if pixel_count else None,
        boxes=Distribution.of(counts.boxes),
        box_classes=_shares([counts.box_classes[n] for n in range(len(card.classes))], card.classes)
        if counts.boxes
        else [],
        labels=_shares([counts.labels[n] for n in range(len(card.classes))], card.classes, size)
        if counts.labels
        else [],
        caption=Distribution.of(counts.caption),
        sound=Distribution.of(counts.sound),
        rates=dict(counts.rates.most_common()),
        problems=dict(Counter(problem.kind for problem in index.problems)),
        damaged=dict(counts.damaged),
    )


def _shares(count: Sequence[int], names: Sequence[str], of: int | None = None) -> list[ClassFrequency]:
    """Every class that has a name, and what comes without one; shares are of all that is counted, or of another number."""
    total = of or max(1, int(sum(count)))
    named = [*names, *(f"{number} (has no name)" for number in range(len(names), len(count)))]
    return [ClassFrequency(n, named[n], int(c), int(c) / total) for n, c in enumerate(count) if c or n < len(names)]


def tables(found: dict[str, SplitStats]) -> list[RenderableType]:
    """The numbers as tables for a terminal."""
    shown: list[RenderableType] = []
    for name, split in found.items():
        about = Table.grid(padding=(0, 2))
        about.title, about.title_justify, about.title_style = Text(name), "left", "bold"
        for row in _lines(split):
            about.add_row(*map(Text, row))
        shown += ["", about]
        for title, shares, unit in (
            ("class", split.classes, "samples"),
            ("mask class", split.mask, "pixels"),
            ("class of boxes", split.box_classes, "boxes"),
            ("class in an image", split.labels if split.labels != split.classes else [], "images"),
        ):
            if shares:
                shown.append(_bars(title, shares, unit))
    return shown


def _lines(split: SplitStats) -> list[tuple[str, str]]:
    missing = ", ".join(f"{name} {count:,}" for name, count in split.missing.items() if count)
    lines = [
        ("samples", f"{split.samples:,} in {split.shards:,} shard{'s' * (split.shards > 1)}"),
        ("missing", missing or "nothing"),
        ("images", ", ".join(f"{form} {count:,}" for form, count in split.formats.items())),
    ]
    spreads = (
        ("width", split.width, ",.0f"),
        ("height", split.height, ",.0f"),
        ("width / height", split.aspect, ".2f"),
    )
    lines += [(name, spread.text(form)) for name, spread, form in spreads if spread is not None]
    if split.unknown is not None:
        lines.append(("mask pixels", f"{split.unknown:.2%} unknown"))
    if split.boxes is not None:
        lines.append(("boxes in an image", f"{split.boxes.text()}; {split.boxes.total:,.0f} in all"))
    if split.caption is not None:
        lines.append(("caption, characters", split.caption.text()))
    if split.sound is not None:
        rates = "; ".join(f"{rate}: {count:,}" for rate, count in split.rates.items())
        lines.append(
            ("sound, seconds", f"{split.sound.text('.2f')}; {split.sound.total / 3600:.2f} hours in all; {rates}")
        )
    for name, found in (("problems", split.problems), ("damaged", split.damaged)):
        if found:
            lines.append(
                (name, ", ".join(f"{kind} {count:,}" for kind, count in found.items()) + ": run mtgen shards validate")
            )
    return lines


def _bars(title: str, shares: list[ClassFrequency], unit: str) -> Table:
    """A line a class; of very many the most frequent, and how many more there are."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(title, overflow="fold")
    table.add_column(unit, justify="right")
    table.add_column("share", justify="right")
    table.add_column("")
    listed = (
        shares
        if len(shares) <= MAX_CLASSES_LISTED
        else sorted(shares, key=lambda share: -share.count)[:MAX_CLASSES_LISTED]
    )
    for share in listed:
        bar = Bar(max(s.count for s in shares) or 1, 0, share.count, width=24)
        table.add_row(Text(share.name), f"{share.count:,}", f"{share.share:.2%}", bar)
    if rest := len(shares) - len(listed):
        empty = sum(not share.count for share in shares)
        table.add_row(Text(f"and {rest} rarer ones, {empty} of them without any", style="dim"))
    return table
