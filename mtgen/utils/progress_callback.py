"""Types of the callbacks to which long-running functions report their progress."""

from collections.abc import Callable

StageProgress = Callable[[str, int, int | None], None]
"""Called with the name of a stage, the number of items done, and their total where it is known."""

CountProgress = Callable[[int, int], None]
"""Called with the number of items done and their total."""


def ignore_stage(stage: str, done: int, total: int | None) -> None:
    """A `StageProgress` that does nothing."""


def ignore_count(done: int, total: int) -> None:
    """A `CountProgress` that does nothing."""
