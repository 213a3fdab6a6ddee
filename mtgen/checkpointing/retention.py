"""Which checkpoints of a run stay, and why."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class BestCriterion:
    """A metric of the snapshots by which one checkpoint is the best: the largest value (`largest`) or the smallest."""

    metric: str
    largest: bool = True

    def select(self, numbers: Mapping[int, Mapping[str, float]]) -> int | None:
        """Images seen of the best checkpoint, of equals the earliest; `None` where the metric was measured at none.

        Args:
            numbers: images seen -> what was measured there.
        """
        measured = {images: values[self.metric] for images, values in sorted(numbers.items()) if self.metric in values}
        return (max if self.largest else min)(measured, key=measured.__getitem__, default=None)


@dataclass(frozen=True)
class Retention:
    """What is kept: the newest `last`, one every `every` images (the first at or after each multiple), and the best."""

    last: int
    every: int | None = None
    best: BestCriterion | None = None

    def reasons(self, numbers: Mapping[int, Mapping[str, float]]) -> dict[int, list[str]]:
        """Images seen -> why that checkpoint stays, in a few words each; without one it goes.

        Args:
            numbers: of every checkpoint: images seen -> what was measured there.
        """
        there = sorted(numbers)
        why: dict[int, list[str]] = {images: [] for images in there}
        for images in there[-self.last :]:
            why[images].append(f"of the last {self.last}")
        if self.every is not None:
            firsts = {images // self.every: images for images in reversed(there) if images >= self.every}
            for images in firsts.values():
                why[images].append(f"one every {self.every:,} images")
        if self.best is not None and (best := self.best.select(numbers)) is not None:
            why[best].append(f"best {self.best.metric}: {numbers[best][self.best.metric]:.4g}")
        return why
