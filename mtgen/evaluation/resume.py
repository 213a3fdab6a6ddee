"""Resuming of an interrupted evaluation: its stages with the progress that is saved from time to time."""

import time

from torch import Tensor

from mtgen.evaluation.base import Stream
from mtgen.evaluation.cache import TensorCache
from mtgen.evaluation.collection import MetricCollection
from mtgen.evaluation.serialization import pack, unpack
from mtgen.evaluation.streams import Stage, StreamSource
from mtgen.utils.progress_callback import StageProgress

STAGE_TITLES = {
    Stage.TRAIN: "read the training split",
    Stage.TRAIN_FEATURES: "features of the training split",
    Stage.GENERATED: "generate",
    Stage.TEST: "read the test split",
}
"""Names of the stages in the progress display."""
MIN_SAVE_SECONDS = 1.0
"""Minimal time between two saves within a stage, seconds; the end of a stage is always saved."""
SAVE_TIME_FACTOR = 20
"""The same, as a multiple of the time that a save takes."""


class ResumableStages:
    """Feeds the parts of each stage to the metrics, in order, and saves everything that they hold.

    Args:
        cache: holds the saved progress, which is restored at once; `None`: nothing is saved.

    Attributes:
        cached_features: a stream whose features are cached elsewhere, and need not be saved.
    """

    def __init__(
        self, source: StreamSource, collection: MetricCollection, cache: TensorCache | None, progress: StageProgress
    ) -> None:
        self.cached_features: Stream | None = None
        self._source = source
        self._collection = collection
        self._cache = cache
        self._progress = progress
        # stage -> parts and images taken in, and whether it is complete
        self._done: dict[str, tuple[int, int, bool]] = {}
        self._saved_at = time.monotonic()
        self._pause = MIN_SAVE_SECONDS
        if cache is not None and (saved := cache.get({})) is not None:
            tensors, note = saved
            self._done = {stage: (parts, images, done) for stage, (parts, images, done) in note["done"].items()}
            collection.load_state_dict(unpack(note["state"], tensors))
            collection.report.resumed = sum(images for _, images, _ in self._done.values())

    def run(self, stage: Stage, total: int | None = None) -> None:
        """Feed every part of a stage that was not fed before; nothing where no metric needs the stage."""
        outputs = self._collection.requested_outputs(stage)
        parts, images, complete = self._done.get(stage, (0, 0, False))
        if outputs is None or complete:
            return
        for part in self._source(stage, outputs, parts):
            self._collection.update(part)
            parts, images = parts + 1, images + len(part)
            self._done[stage] = parts, images, False
            self._progress(STAGE_TITLES[stage], images, total)
            if time.monotonic() >= self._saved_at + self._pause:
                self._save()
        self._done[stage] = parts, images, True
        self._save()

    def restart(self, stage: Stage) -> None:
        """Feed a stage again from its first part."""
        self._done.pop(stage, None)

    def _save(self) -> None:
        if self._cache is None:
            return
        begin = time.monotonic()
        tensors: dict[str, Tensor] = {}
        state = pack(self._collection.state_dict(self.cached_features), tensors)
        self._cache.put({}, tensors, {"done": self._done, "state": state})
        self._saved_at = time.monotonic()
        self._pause = max(MIN_SAVE_SECONDS, SAVE_TIME_FACTOR * (self._saved_at - begin))
