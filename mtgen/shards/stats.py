"""Statistics of a data set."""

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
"""Number of samples in one unit of work of a thread."""

MAX_CLASSES_LISTED = 40
"""Largest number of classes in a table; if there are more, the most frequent are listed."""

StatsProgress = Callable[[str, int, int | None], None]
"""Called with (name of the stage, items done, items in total)."""


@dataclass(frozen=True)
class Distribution:
    """Summary statistics of numbers."""

    count: int
    min: float
    median: float
    mean: float
    max: float
    total: float

    @classmethod
    def of(cls, values: ArrayLike) -> "Distribution | None":
        """Summarize numbers; `None` if there are none."""
        v = np.asarray(values, dtype=np.float64)
        if not v.size:
            return None
        return cls(v.size, float(v.min()), float(np.median(v)), float(v.mean()), float(v.max()), float(v.sum()))

    def text(self, form: str = ",.0f") -> str:
        """Smallest, median and largest."""
        if self.min == self.max:
            return f"all {self.min:{form}}"
        return f"{self.min:{form}} to {self.max:{form}}, median {self.median:{form}}"


@dataclass(frozen=True)
class ClassFrequency:
    """A class, how often it occurs, and the fraction (`share`) of the total that is."""

    number: int
    name: str
    count: int
    share: float


@dataclass(frozen=True)
class SplitStats:
    """Statistics of one split; those of components that no sample has are `None` or empty.

    Attributes:
        samples, shards: their numbers.
        missing: component -> number of samples without it.
        formats: image format -> number of samples.
        width, height: pixels.
        aspect: width / height.
        classes: samples per class.
        mask: pixels per mask class; fractions are of the known pixels.
        unknown: fraction of the masks' pixels whose class is unknown.
        boxes: boxes per image.
        box_classes: boxes per class.
        labels: images that contain each class, by their labels or boxes.
        caption: characters.
        sound: seconds.
        rates: "8,000 Hz, 1 channel" -> number of sounds.
        problems: kind -> number of problems in the index; their samples are left out.
        damaged: component -> number that could not be decoded; they are left out.
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
    """Counts over some samples of a split; `values` counts mask values as stored."""

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
        """Count the components of sample `i` other than its image."""
        for component, count in (
            ("mask", self._mask),
            ("boxes", self._boxes),
            ("tags", self._tags),
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
        self.boxes.append(len(stored.boxes))
        self.box_classes.update(stored.boxes[:, 4].astype(int).tolist())

    def _tags(self, data: bytes, index: Index, i: int) -> None:
        stored = annotation(data, int(index.width[i]), int(index.height[i]), index.class_table(i))
        self.labels.update(set(stored.labels))

    def _caption(self, data: bytes, index: Index, i: int) -> None:
        self.caption.append(len(data.decode("utf-8-sig").strip()))

    def _sound(self, data: bytes, index: Index, i: int) -> None:
        seconds, rate, channels = sound_info(data)
        self.sound.append(seconds)
        self.rates[f"{rate:,} Hz, {channels} channel{'s' * (channels > 1)}"] += 1

    def merge(self, other: "_Counts") -> None:
        """Add the counts over other samples."""
        self.values += other.values
        for mine, theirs in ((self.boxes, other.boxes), (self.caption, other.caption), (self.sound, other.sound)):
            mine.extend(theirs)  # type: ignore[arg-type]
        self.box_classes.update(other.box_classes)
        self.labels.update(other.labels)
        self.rates.update(other.rates)
        self.damaged.update(other.damaged)


def stats(folder: str | Path, show: StatsProgress | None = None) -> dict[str, SplitStats]:
    """Compute the statistics of each split, from its index and one parallel pass over everything but the images.

    Raises:
        DataError: a split has no usable samples, or a shard changes while it is read.
    """
    return {split: _stats(folder, split, show) for split in read_card(folder).splits}


def open_for_inspection(folder: str | Path, split: str, show: StatsProgress | None) -> Index:
    """Open the index of a split without its damaged samples, however many these are."""
    progress = None if show is None else lambda done, total: show("index", done, total)
    return open_index(folder, split, progress, on_damage="skip", damage_limit=1)


def _stats(folder: str | Path, split: str, show: StatsProgress | None) -> SplitStats:
    index = open_for_inspection(folder, split, show)
    card, size = index.card, len(index)

    def count_chunk(first: int) -> _Counts:
        counts = _Counts(len(card.classes))
        for i in range(first, min(first + SAMPLES_PER_CHUNK, size)):
            counts.add(index, i)
        return counts

    counts = _Counts(len(card.classes))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for number, chunk in enumerate(pool.map(count_chunk, range(0, size, SAMPLES_PER_CHUNK)), 1):
            counts.merge(chunk)
            if show is not None:
                show(split, min(number * SAMPLES_PER_CHUNK, size), size)
    ignored = sorted({card.ignore_index, IGNORE_INDEX})
    pixel_count = int(counts.values.sum())
    unknown = int(counts.values[ignored].sum())
    counts.values[ignored] = 0
    label, width, height = (np.asarray(column) for column in (index.label, index.width, index.height))
    label = label[label >= 0]
    return SplitStats(
        samples=size,
        shards=len(index.shards),
        missing={name: size - int(index.present[name].sum()) for name in COMPONENTS},
        formats=index.formats,
        width=Distribution.of(width),
        height=Distribution.of(height),
        aspect=Distribution.of(width / height),
        classes=_frequencies(np.bincount(label, minlength=len(card.classes)).tolist(), card.classes)
        if len(label)
        else [],
        mask=_frequencies(counts.values.tolist(), card.mask_classes) if pixel_count else [],
        unknown=unknown / pixel_count if pixel_count else None,
        boxes=Distribution.of(counts.boxes),
        box_classes=_frequencies([counts.box_classes[n] for n in range(len(card.classes))], card.classes)
        if counts.boxes
        else [],
        labels=_frequencies([counts.labels[n] for n in range(len(card.classes))], card.classes, size)
        if counts.labels
        else [],
        caption=Distribution.of(counts.caption),
        sound=Distribution.of(counts.sound),
        rates=dict(counts.rates.most_common()),
        problems=dict(Counter(problem.kind for problem in index.problems)),
        damaged=dict(counts.damaged),
    )


def _frequencies(counts: Sequence[int], names: Sequence[str], total: int | None = None) -> list[ClassFrequency]:
    """Frequencies of all named classes, and of unnamed ones that occur.

    Args:
        total: denominator of the fractions; default: the sum of the counts.
    """
    total = total or max(1, int(sum(counts)))
    named = [*names, *(f"{number} (unnamed)" for number in range(len(names), len(counts)))]
    return [ClassFrequency(n, named[n], int(c), int(c) / total) for n, c in enumerate(counts) if c or n < len(names)]


def tables(statistics: dict[str, SplitStats]) -> list[RenderableType]:
    """Render statistics as tables for a terminal."""
    rendered: list[RenderableType] = []
    for name, split in statistics.items():
        summary = Table.grid(padding=(0, 2))
        summary.title, summary.title_justify, summary.title_style = Text(name), "left", "bold"
        for row in _summary_rows(split):
            summary.add_row(*map(Text, row))
        rendered += ["", summary]
        for title, frequencies, unit in (
            ("class", split.classes, "samples"),
            ("mask class", split.mask, "pixels"),
            ("class of the box", split.box_classes, "boxes"),
            ("class in the image", split.labels if split.labels != split.classes else [], "images"),
        ):
            if frequencies:
                rendered.append(_bars(title, frequencies, unit))
    return rendered


def _summary_rows(split: SplitStats) -> list[tuple[str, str]]:
    missing = ", ".join(f"{name} {count:,}" for name, count in split.missing.items() if count)
    lines = [
        ("samples", f"{split.samples:,} in {split.shards:,} shard{'s' * (split.shards > 1)}"),
        ("missing", missing or "nothing"),
        ("images", ", ".join(f"{form} {count:,}" for form, count in split.formats.items())),
    ]
    distributions = (
        ("width", split.width, ",.0f"),
        ("height", split.height, ",.0f"),
        ("width / height", split.aspect, ".2f"),
    )
    lines += [(name, values.text(form)) for name, values, form in distributions if values is not None]
    if split.unknown is not None:
        lines.append(("mask pixels", f"{split.unknown:.2%} unknown"))
    if split.boxes is not None:
        lines.append(("boxes per image", f"{split.boxes.text()}; {split.boxes.total:,.0f} in total"))
    if split.caption is not None:
        lines.append(("caption, characters", split.caption.text()))
    if split.sound is not None:
        rates = "; ".join(f"{rate}: {count:,}" for rate, count in split.rates.items())
        lines.append(
            ("sound, seconds", f"{split.sound.text('.2f')}; {split.sound.total / 3600:.2f} hours in total; {rates}")
        )
    for name, counts in (("problems", split.problems), ("damaged", split.damaged)):
        if counts:
            listed = ", ".join(f"{kind} {count:,}" for kind, count in counts.items())
            lines.append((name, f"{listed}; `mtgen shards validate` lists them"))
    return lines


def _bars(title: str, frequencies: list[ClassFrequency], unit: str) -> Table:
    """One line per class; if there are very many, the most frequent ones and the number of others."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(title, overflow="fold")
    table.add_column(unit, justify="right")
    table.add_column("fraction", justify="right")
    table.add_column("")
    listed = frequencies
    if len(frequencies) > MAX_CLASSES_LISTED:
        listed = sorted(frequencies, key=lambda frequency: -frequency.count)[:MAX_CLASSES_LISTED]
    largest = max(frequency.count for frequency in frequencies) or 1
    for frequency in listed:
        bar = Bar(largest, 0, frequency.count, width=24)
        table.add_row(Text(frequency.name), f"{frequency.count:,}", f"{frequency.share:.2%}", bar)
    if rest := len(frequencies) - len(listed):
        empty = sum(not frequency.count for frequency in frequencies)
        table.add_row(Text(f"and {rest} less frequent ones, {empty} of them with no {unit}", style="dim"))
    return table
