"""Which checkpoints of a run are kept, and why."""

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class BestCriterion:
    """The metric that determines the best checkpoint: the one with the largest value (`largest`) or the smallest."""

    metric: str
    largest: bool = True

    def value(self, metrics: Mapping[str, float]) -> float | None:
        """The metric of a checkpoint, or `None`.

        Checkpoints of older versions have `val/...` as `test/...`; such a run is still validated on the test split.
        """
        return metrics.get(self.metric, metrics.get(re.sub("^val/", "test/", self.metric)))

    def select(self, metrics: Mapping[int, Mapping[str, float]]) -> int | None:
        """Images seen of the best checkpoint, the earliest in a tie; `None` if no checkpoint has the metric.

        Args:
            metrics: images seen -> metrics of the checkpoint.
        """
        found = {images: self.value(values) for images, values in sorted(metrics.items())}
        measured = {images: value for images, value in found.items() if value is not None}
        return (max if self.largest else min)(measured, key=measured.__getitem__, default=None)


@dataclass(frozen=True)
class Retention:
    """Which checkpoints to keep.

    Attributes:
        last: the number of newest ones.
        every: additionally one every this many images: the first at or after each multiple.
        best: additionally the best one by this criterion.
    """

    last: int
    every: int | None = None
    best: BestCriterion | None = None

    def reasons(self, metrics: Mapping[int, Mapping[str, float]]) -> dict[int, list[str]]:
        """Images seen -> the reasons to keep that checkpoint, in a few words each; without reasons it is removed.

        Args:
            metrics: images seen -> metrics, for every checkpoint.
        """
        checkpoints = sorted(metrics)
        reasons: dict[int, list[str]] = {images: [] for images in checkpoints}
        for images in checkpoints[-self.last :]:
            reasons[images].append(f"of the last {self.last}")
        if self.every is not None:
            firsts = {images // self.every: images for images in reversed(checkpoints) if images >= self.every}
            for images in firsts.values():
                reasons[images].append(f"one every {self.every:,} images")
        if self.best is not None and (best := self.best.select(metrics)) is not None:
            reasons[best].append(f"best {self.best.metric}: {self.best.value(metrics[best]):.4g}")
        return reasons
