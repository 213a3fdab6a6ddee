"""A sum over a count, such as an accuracy or a mean score."""

from mtgen.evaluation.base import Skipped
from mtgen.evaluation.collectors.base import State


class Ratio:
    """A sum and a count.

    Attributes:
        total: the sum.
        count: what it is divided by.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self.count = 0

    def update(self, total: float, count: int) -> None:
        """Add to both."""
        self.total += total
        self.count += count

    def compute(self, reason: str) -> float:
        """total / count.

        Raises:
            Skipped: the count is 0; with this reason.
        """
        if not self.count:
            raise Skipped(reason)
        return self.total / self.count

    def state_dict(self) -> State:
        """Both numbers."""
        return {"total": self.total, "count": self.count}

    def load_state_dict(self, state: State) -> None:
        """Restore both numbers."""
        self.total = state["total"]
        self.count = state["count"]
