"""Features of a stream of images, in memory that does not grow with their number."""

import torch
from torch import Tensor

from mtgen.evaluation.metric import Skipped
from mtgen.evaluation.subsample import MAX_ROWS_KEPT, Choice


class Features:
    """Mean and scatter of all features of a stream, and a uniform choice of at most `MAX_ROWS_KEPT` of them (see `Choice`).

    Attributes:
        mean: `[D]` float64.
        scatter: `[D,D]` float64, the sum of the outer products of the deviations from the mean.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.mean = torch.zeros(size, dtype=torch.float64)
        self.scatter = torch.zeros(size, size, dtype=torch.float64)
        self._choice = Choice(MAX_ROWS_KEPT)

    @property
    def count(self) -> int:
        """How many features came."""
        return self._choice.count

    def update(self, features: Tensor, position: Tensor) -> None:
        """Take in features `[B,D]` of the samples at the positions `[B]`.

        Source: Chan, Golub and LeVeque 1979 (moments of two parts put together: no difference of two large sums).
        """
        rows = features.detach().to("cpu", torch.float64)
        mean, total = rows.mean(0), self.count + len(rows)
        apart, centered = mean - self.mean, rows - mean
        self.scatter += centered.T @ centered + torch.outer(apart, apart) * (self.count * len(rows) / total)
        self.mean += apart * (len(rows) / total)
        self._choice.update(features.to(torch.float32), position=position)

    @property
    def kept(self) -> Tensor:
        """`[n,D]` float32, n up to `MAX_ROWS_KEPT`, in the order of their positions."""
        return self._choice.rows()[1]

    @property
    def position(self) -> Tensor:
        """`[n]` int64: the positions of `kept`."""
        return self._choice.rows()[0]

    @property
    def covariance(self) -> Tensor:
        """`[D,D]` float64, unbiased."""
        return self.scatter / (self.count - 1)


class FeatureSets:
    """The features that distribution metrics compare, by what they are of: "train", "generated", "test".

    Attributes:
        name: of the extractor, part of the metrics' names.
        sets: what there is.
        closest: the generated images nearest to a training image: its position, that of the training image, and their distance.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.sets: dict[str, Features] = {}
        self.closest: list[tuple[int, int, float]] = []

    def update(self, kind: str, features: Tensor, position: Tensor) -> None:
        """Take in features `[B,D]` of a part of the stream `kind`."""
        if kind not in self.sets:
            self.sets[kind] = Features(features.shape[1])
        self.sets[kind].update(features, position)

    def get(self, kind: str, least: int) -> Features:
        """The features of a stream.

        Raises:
            Skipped: they are fewer than `least`.
        """
        count = self.sets[kind].count if kind in self.sets else 0
        if count < least:
            raise Skipped(f"it takes {least:,} {_WORDS[kind]} images; there are {count:,}")
        return self.sets[kind]

    def size(self) -> int:
        """D; `Skipped` where no image came."""
        if not self.sets:
            raise Skipped("no image came")
        return next(iter(self.sets.values())).size


_WORDS = {"train": "real training", "generated": "generated", "test": "real test"}
