"""Features of streams of images, in memory that does not grow with the number of images."""

import torch
from torch import Tensor

from mtgen.evaluation.base import Skipped, Stream
from mtgen.evaluation.collectors.base import State
from mtgen.evaluation.collectors.uniform_subsample import MAX_ROWS_KEPT, UniformSubsample

STREAM_TITLES = {Stream.TRAIN: "real training", Stream.GENERATED: "generated", Stream.TEST: "real test"}
"""What the images of a stream are called in messages."""


class FeatureStatistics:
    """Mean and scatter of all features of a stream, and a uniform subsample of at most `MAX_ROWS_KEPT` of them.

    Attributes:
        mean: `[D]` float64.
        scatter: `[D,D]` float64, the sum of the outer products of the deviations from the mean.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.mean = torch.zeros(size, dtype=torch.float64)
        self.scatter = torch.zeros(size, size, dtype=torch.float64)
        self._subsample = UniformSubsample(MAX_ROWS_KEPT)

    @property
    def count(self) -> int:
        """Number of features seen."""
        return self._subsample.count

    def update(self, features: Tensor, position: Tensor) -> None:
        """Take in features `[B,D]` of the samples at the positions `[B]`.

        Source: Chan, Golub and LeVeque 1979 (moments of two parts are combined, without a difference of two large
        sums).
        """
        rows = features.detach().to("cpu", torch.float64)
        mean, total = rows.mean(0), self.count + len(rows)
        difference, centered = mean - self.mean, rows - mean
        self.scatter += centered.T @ centered + torch.outer(difference, difference) * (self.count * len(rows) / total)
        self.mean += difference * (len(rows) / total)
        self._subsample.update(features.to(torch.float32), position=position)

    @property
    def kept(self) -> Tensor:
        """The subsample, `[n,D]` float32, n up to `MAX_ROWS_KEPT`, by position."""
        return self._subsample.rows()[1]

    @property
    def position(self) -> Tensor:
        """`[n]` int64: the positions of `kept`."""
        return self._subsample.rows()[0]

    @property
    def covariance(self) -> Tensor:
        """`[D,D]` float64, unbiased."""
        return self.scatter / (self.count - 1)

    def state_dict(self) -> State:
        """The moments and the subsample."""
        return {"mean": self.mean, "scatter": self.scatter, "subsample": self._subsample.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Restore the moments and the subsample."""
        self.mean = state["mean"]
        self.scatter = state["scatter"]
        self._subsample.load_state_dict(state["subsample"])

    @classmethod
    def from_state_dict(cls, state: State) -> "FeatureStatistics":
        """New statistics with a saved state."""
        statistics = cls(len(state["mean"]))
        statistics.load_state_dict(state)
        return statistics


class FeatureSets:
    """The features that metrics compare, by stream: "train", "generated", "test".

    Attributes:
        name: name of the extractor, which is part of the numbers' names.
        sets: the streams of which features were taken in.
        closest: the generated images nearest to a training image: its position, the training image's position, their
            distance.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.sets: dict[str, FeatureStatistics] = {}
        self.closest: list[tuple[int, int, float]] = []

    def update(self, stream: str, features: Tensor, position: Tensor) -> None:
        """Take in features `[B,D]` of a part of a stream."""
        if stream not in self.sets:
            self.sets[stream] = FeatureStatistics(features.shape[1])
        self.sets[stream].update(features, position)

    def get(self, stream: Stream, at_least: int) -> FeatureStatistics:
        """The features of a stream.

        Raises:
            Skipped: there are fewer than `at_least`.
        """
        count = self.sets[stream].count if stream in self.sets else 0
        if count < at_least:
            raise Skipped(f"at least {at_least:,} {STREAM_TITLES[stream]} images are needed; there are {count:,}")
        return self.sets[stream]

    def size(self) -> int:
        """D; `Skipped` where there are no features."""
        if not self.sets:
            raise Skipped("there are no images")
        return next(iter(self.sets.values())).size

    def state_dict(self, without: Stream | None = None) -> State:
        """The statistics of every stream, except of one that is stored elsewhere."""
        return {stream: found.state_dict() for stream, found in self.sets.items() if stream != without}

    def load_state_dict(self, state: State) -> None:
        """Restore the statistics of the streams in the state."""
        self.sets |= {stream: FeatureStatistics.from_state_dict(one) for stream, one in state.items()}
