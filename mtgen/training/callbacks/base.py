"""The interface of all callbacks."""

from mtgen.training.protocol import Outcome


class Callback:
    """Something that happens beside the steps.

    All workers call the same methods at the same step, in the order of `mtgen.training.trainer.build_callbacks`. All
    methods but `wants_interrupt` and `numbers` may therefore communicate with the other workers.
    """

    def wants_interrupt(self) -> bool:
        """Whether this worker requests `on_interrupt` before a later step; called in a thread, twice a second."""
        return False

    def on_interrupt(self) -> Outcome | None:
        """Act before the next step, on all workers, because one of them requested it; an outcome ends training."""
        return None

    def on_step_end(self) -> Outcome | None:
        """Act after a step; an outcome ends training, and the callbacks after this one are skipped."""
        return None

    def on_end(self, outcome: Outcome) -> Outcome:
        """Act after the last step; returns the outcome, or a failure in its place."""
        return outcome

    def close(self) -> None:
        """Release what the callback holds, once the outcome is on disk."""

    def numbers(self) -> dict[str, float]:
        """Values that the callback adds to each row of metrics."""
        return {}
