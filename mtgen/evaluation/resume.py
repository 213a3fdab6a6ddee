"""The stages of an evaluation, one after the other; one that was interrupted goes on where it was."""

import time
from collections.abc import Callable
from typing import Any

from mtgen.evaluation.cache import TensorCache
from mtgen.evaluation.collection import MetricCollection
from mtgen.evaluation.metric import StageProgress
from mtgen.evaluation.streams import RequestedOutputs, StreamSource

STAGE_TITLES = {
    "read": "read the training split",
    "seen": "features of the training split",
    "generated": "generate",
    "tested": "read the test split",
}
"""`Work`'s stages, as progress names them."""
MIN_SAVE_SECONDS = 1.0
"""Seconds between two times at which it is kept how far the evaluation is, at least; it is kept after each stage, too."""
SAVE_TIME_FACTOR = 20
"""The same, as a multiple of the time that keeping it takes."""


class ResumablePass:
    """Hands the parts of each stage to the metrics, in order.

    Args:
        own: where it is kept how far it is; what lies there is gone on with. `None`: it begins anew and nothing is kept.

    Attributes:
        done: stage -> parts and images that were taken in, and whether these are all.
    """

    def __init__(
        self, gather: StreamSource, panel: MetricCollection, own: TensorCache | None, progress: StageProgress
    ) -> None:
        self.gather = gather
        self.panel = panel
        self.own = own
        self.progress = progress
        self.done: dict[str, tuple[int, int, bool]] = {}
        self.elsewhere: tuple[str, ...] = ()
        """Streams whose features are stored for good."""
        self._pause = MIN_SAVE_SECONDS
        self._kept = time.monotonic()
        if own is not None and (found := own.get({})) is not None:
            tensors, note = found
            self.done = {stage: (parts, images, all_) for stage, (parts, images, all_) in note["done"].items()}
            panel.unpack(note["taken"], tensors)
            panel.report.resumed = sum(images for _, images, _ in self.done.values())

    def feed(self, stage: str, wanted: RequestedOutputs, take: Callable[[Any], None], total: int | None = None) -> None:
        """Hand every part of a stage on that was not handed on before."""
        parts, images, finished = self.done.get(stage, (0, 0, False))
        if finished:
            return
        for part in self.gather(stage, wanted, parts):
            take(part)
            parts, images = parts + 1, images + len(part)
            self.done[stage] = parts, images, False
            self.progress(STAGE_TITLES[stage], images, total)
            if time.monotonic() >= self._kept + self._pause:
                self._keep()
        self.done[stage] = parts, images, True
        self._keep()

    def _keep(self) -> None:
        if self.own is not None:
            begin = time.monotonic()
            taken, tensors = self.panel.packed(but=self.elsewhere)
            self.own.put({}, tensors, {"done": self.done, "taken": taken})
            self._kept = time.monotonic()
            self._pause = max(MIN_SAVE_SECONDS, SAVE_TIME_FACTOR * (self._kept - begin))
