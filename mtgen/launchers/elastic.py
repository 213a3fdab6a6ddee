"""Elastic runs: how many workers a run may have, and when it may grow. Ray's side is `ray_internals.ElasticPolicy`."""

from pathlib import Path
from typing import Generic, TypeVar

from mtgen.training.protocol import Resize

DecisionT = TypeVar("DecisionT")


class ElasticResize(Generic[DecisionT]):
    """Limits a run to certain worker counts, and delays growth until the running workers have saved a checkpoint.

    Args:
        counts: possible numbers of workers, ascending: those that divide a step evenly.
        folder: folder of the run, through which workers are asked and answer.
    """

    def __init__(self, counts: list[int], folder: Path) -> None:
        self._counts = counts
        self._signal = Resize(folder)
        self._requested: DecisionT | None = None

    def largest_count(self, possible: int) -> int:
        """The largest possible count where there is room for `possible` workers; 0 if none fits."""
        return max((count for count in self._counts if count <= possible), default=0)

    def forget(self) -> None:
        """Drop a requested resize: its workers were lost."""
        self._requested = None

    def request(self, decision: DecisionT) -> None:
        """Ask the workers for a checkpoint, after which `decision` is taken."""
        self._requested = decision
        if not self._signal.asked():
            self._signal.ask()

    def take(self) -> DecisionT | None:
        """The requested resize, once and only after the workers have saved their checkpoint; `None` before."""
        if self._requested is None or not self._signal.is_ready():
            return None
        decision, self._requested = self._requested, None
        return decision
