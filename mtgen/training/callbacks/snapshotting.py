"""Pictures and quick validation metrics every `evaluate.every` images."""

import math
import time

import torch.distributed as dist

from mtgen.errors import UserError
from mtgen.models.ema import EMA
from mtgen.models.model import Model, build
from mtgen.training.callbacks.base import Callback
from mtgen.training.protocol import Outcome, SnapshotCallback
from mtgen.training.run_logger import RunLogger
from mtgen.training.run_setup import TrainingParts, named_networks


class Snapshotting(Callback):
    """Evaluates the averaged weights on the first worker, while the others wait; a pause for the timer.

    Args:
        snapshot: makes the pictures and metrics; `None`: there are none.
    """

    def __init__(self, parts: TrainingParts, snapshot: SnapshotCallback | None) -> None:
        self.parts = parts
        self.snapshot = snapshot
        self._measured_at = -1
        self._metrics: dict[str, float] = {}

    def metrics(self) -> dict[str, float]:
        """Finite metrics of a snapshot after the present step; empty if there was none, and on the other workers."""
        return self._metrics if self._measured_at == self.parts.progress.images else {}

    def on_step_end(self) -> Outcome | None:
        if self.parts.progress.due(self.parts.config.evaluate.every):
            self._take()
        return None

    def on_end(self, outcome: Outcome) -> Outcome:
        """Show what the time was enough for, if the run is out of time."""
        if outcome.status == "out of time" and self._measured_at != self.parts.progress.images:
            self._take()
        return outcome

    def _take(self) -> None:
        parts, images = self.parts, self.parts.progress.images
        parts.timer.pause()
        self._measured_at = images
        self._metrics = {}
        if parts.logger is not None and self.snapshot is not None:
            parts.logger.phase(images, "evaluating")
            try:
                self._evaluate(parts.logger, self.snapshot)
            except (
                UserError,
                OSError,
            ) as error:  # a damaged sample or a full disk does not justify losing the run
                parts.warn(f"no pictures and validation metrics at {images:,} images: {error}")
            parts.logger.phase(images, "")
            parts.logger.refresh_report()
        dist.barrier(group=parts.consensus.group)
        parts.timer.resume()

    def _evaluate(self, logger: RunLogger, snapshot: SnapshotCallback) -> None:
        images, begin = self.parts.progress.images, time.monotonic()
        with self.parts.heartbeat.busy("evaluating"):
            numbers, pictures = snapshot(self._averaged_model(), images)
        self._metrics = {name: value for name, value in numbers.items() if math.isfinite(value)}
        logger.evaluation(images, numbers, time.monotonic() - begin, pictures)

    def _averaged_model(self) -> Model:
        """The averaged weights in networks of their own."""
        parts = self.parts
        networks = build(parts.config, parts.samples.card)
        target = EMA(named_networks(networks), 0.0)
        target.average = parts.ema.average
        target.copy_to_live()
        return Model(networks, parts.config, parts.samples.card, parts.worker.device)
