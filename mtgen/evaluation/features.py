"""Features of a stream of images, in memory that does not grow with their number."""

import torch
from torch import Tensor

from mtgen import counter
from mtgen.evaluation.metric import Skipped

MOST = 10_000
"""Features that are kept of a stream at most, a uniform choice of them; moments are of all."""


class Features:
    """Mean and scatter of all features of a stream, and a uniform choice of at most `MOST` of them.

    Which are kept is a function of their positions alone: those with the smallest random numbers. So the choice does not depend on
    the order of the stream, nor on who computed which part of it.

    Attributes:
        count: how many features came.
        mean: `[D]` float64.
        scatter: `[D,D]` float64, the sum of the outer products of the deviations from the mean.
    """

    def __init__(self, size: int) -> None:
        self.size, self.count = size, 0
        self.mean = torch.zeros(size, dtype=torch.float64)
        self.scatter = torch.zeros(size, size, dtype=torch.float64)
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._rows, self._limit = 0, 2**63 - 1

    def update(self, features: Tensor, position: Tensor) -> None:
        """Take in features `[B,D]` of the samples at the positions `[B]`.

        Source: Chan, Golub and LeVeque 1979 (moments of two parts put together: no difference of two large sums).
        """
        rows = features.detach().to("cpu", torch.float64)
        mean, total = rows.mean(0), self.count + len(rows)
        apart, centred = mean - self.mean, rows - mean
        self.scatter += centred.T @ centred + torch.outer(apart, apart) * (self.count * len(rows) / total)
        self.mean += apart * (len(rows) / total)
        self.count = total
        self._keep(features.detach().to("cpu", torch.float32), position.cpu())

    def _keep(self, features: Tensor, position: Tensor) -> None:
        lucky = _lot(position) <= self._limit
        self._kept.append((features[lucky], position[lucky]))
        self._rows += int(lucky.sum())
        if self._rows >= 2 * MOST:
            self._cut()

    def _cut(self) -> None:
        """Keep the `MOST` with the smallest numbers, in the order of their positions."""
        features, position = (torch.cat(part) for part in zip(*self._kept, strict=True))
        chosen = _lot(position).argsort()[:MOST]
        if len(chosen) == MOST:
            self._limit = int(_lot(position)[chosen[-1]])
        chosen = chosen[position[chosen].argsort()]
        self._kept, self._rows = [(features[chosen], position[chosen])], len(chosen)

    @property
    def kept(self) -> Tensor:
        """`[n,D]` float32, n up to `MOST`, in the order of their positions."""
        self._cut()
        return self._kept[0][0]

    @property
    def position(self) -> Tensor:
        """`[n]` int64: the positions of `kept`."""
        self._cut()
        return self._kept[0][1]

    @property
    def covariance(self) -> Tensor:
        """`[D,D]` float64, unbiased."""
        return self.scatter / (self.count - 1)

    def tensors(self) -> dict[str, Tensor]:
        """Everything, to be stored."""
        state = {"count": torch.tensor(self.count), "mean": self.mean, "scatter": self.scatter}
        return state | {"kept": self.kept.contiguous(), "position": self.position.contiguous()}

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> "Features":
        """What `tensors` gave."""
        made = cls(len(tensors["mean"]))
        made.count, made.mean, made.scatter = int(tensors["count"]), tensors["mean"], tensors["scatter"]
        made._kept, made._rows = [(tensors["kept"], tensors["position"])], len(tensors["kept"])
        return made


def _lot(position: Tensor) -> Tensor:
    """`[B]` int64: a random number for each position, always the same."""
    return counter.bits(0, "features", position, 1)[:, 0]


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
