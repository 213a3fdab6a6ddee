"""What the workers exchange for a row of metrics: one all-reduce, which also says which of them is slow."""

from collections.abc import Sequence
from dataclasses import dataclass

from mtgen.training.run_setup import TrainingParts


@dataclass(frozen=True)
class ExchangedRow:
    """What all workers know about the steps since the last row.

    Attributes:
        means: of losses, over steps and workers.
        images_per_second: over all workers.
        forward_ms: milliseconds of a forward pass of the discriminator's step, per worker.
        data_wait: fraction of the time that a worker waited for data, per worker.
        damaged: damaged samples that the workers have not counted yet, over all workers.
    """

    means: dict[str, float]
    images_per_second: float
    forward_ms: list[float]
    data_wait: list[float]
    damaged: int

    def numbers(self) -> dict[str, float]:
        """The row's numbers about speed; about the slowest workers only where there are several."""
        numbers = {
            "speed/images_per_second": self.images_per_second,
            "speed/data_wait_share": sum(self.data_wait) / len(self.data_wait),
        }
        if len(self.forward_ms) > 1:
            numbers |= _spread("forward_ms", self.forward_ms) | _spread("data_wait", self.data_wait)
        return numbers


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Smallest, mean and largest value over the workers, and which worker has the largest."""
    return {
        f"workers/{name}_min": min(values),
        f"workers/{name}_mean": sum(values) / len(values),
        f"workers/{name}_max": max(values),
        f"workers/{name}_slowest": float(max(range(len(values)), key=values.__getitem__)),
    }


class RowExchange:
    """Exchanges the numbers of a row once per step, whichever callback asks first."""

    def __init__(self, parts: TrainingParts) -> None:
        self.parts = parts
        self._steps = -1
        self._row: ExchangedRow | None = None

    def row(self) -> ExchangedRow:
        """The row of the present step; collective when it is asked for first, and then begins new means."""
        parts = self.parts
        if self._row is None or self._steps != parts.progress.steps:
            speed = parts.timer.lap(parts.progress.images, parts.loader.waited)
            forward_ms = parts.engines["discriminator"].forward_timer.read()
            own = forward_ms, speed.data_wait_fraction, float(len(parts.loader.damaged))
            means, workers = parts.means.read(own)
            forward, waits, damaged = (list(column) for column in zip(*workers, strict=True))
            self._row = ExchangedRow(means, speed.images_per_second, forward, waits, int(sum(damaged)))
            self._steps = parts.progress.steps
        return self._row
