"""Straggler: one worker is slower than the others for long, and all of them wait for it."""

from collections.abc import Iterator

from mtgen.alarms.base import ALARM_RULES, AlarmRule, Finding, Numbers
from mtgen.config import Config

MIN_SLOWDOWN = 1.1
"""Forward pass of the slowest worker, relative to the mean over all workers."""

MIN_ROWS = 10
"""Rows in which the same worker has to be the slowest: other work on a node is brief, a slow GPU is not."""


@ALARM_RULES.register("straggler")
class Straggler(AlarmRule):
    """The same worker has the slowest forward pass, by a tenth, in ten rows in a row."""

    def __init__(self, config: Config) -> None:
        self.worker = -1
        self.rows = 0

    def check(self, images: int, numbers: Numbers) -> Iterator[Finding]:
        slowest = numbers.get("workers/forward_ms_slowest")
        if slowest is None:
            return
        slowdown = numbers["workers/forward_ms_max"] / max(numbers["workers/forward_ms_mean"], 1e-9)
        if slowdown < MIN_SLOWDOWN or int(slowest) != self.worker:
            self.worker, self.rows = int(slowest), 0
        self.rows += slowdown >= MIN_SLOWDOWN
        if self.rows >= MIN_ROWS:
            yield Finding(
                f"worker {self.worker}",
                f"its forward passes took {slowdown:.2f} times the mean over all workers in {self.rows} rows in a row, "
                "and all workers wait for it",
                "a look at its node, which the report names: other processes, clocks and temperature of its GPU "
                "(nvidia-smi -q -d PERFORMANCE); leave the node out if that does not help",
            )
