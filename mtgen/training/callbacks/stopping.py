"""Requests from outside the loop: to stop, to stop in time, to save, to restart with more workers."""

import contextlib
import time

from mtgen.training.callbacks.base import Callback
from mtgen.training.callbacks.checkpointing import Checkpointing
from mtgen.training.protocol import CHECKPOINT_FILE, STOP_FILE, Outcome, Resize
from mtgen.training.run_setup import TrainingParts


class StopFile(Callback):
    """Ends the run when a file `stop` is in its folder."""

    def __init__(self, parts: TrainingParts) -> None:
        self.parts = parts
        self.path = parts.config.folder / STOP_FILE

    def wants_interrupt(self) -> bool:
        return self.parts.worker.is_first and self.path.exists()

    def on_interrupt(self) -> Outcome | None:
        return Outcome("stopped", self.parts.progress.images)


class TimeLimit(Callback):
    """Ends the run when it has trained for `train.max_minutes`, earlier parts included."""

    def __init__(self, parts: TrainingParts) -> None:
        self.parts = parts
        self.minutes = parts.config.train.max_minutes

    def wants_interrupt(self) -> bool:
        if self.minutes is None or not self.parts.worker.is_first:
            return False
        return self.parts.timer.seconds >= 60 * self.minutes

    def on_interrupt(self) -> Outcome | None:
        return Outcome("out of time", self.parts.progress.images, f"train.max_minutes={self.minutes} are over")


class CheckpointRequest(Callback):
    """Writes a checkpoint when a file `checkpoint` is in the run's folder: a node is about to leave."""

    def __init__(self, parts: TrainingParts, checkpoints: Checkpointing) -> None:
        self.parts = parts
        self.checkpoints = checkpoints
        self.path = parts.config.folder / CHECKPOINT_FILE

    def wants_interrupt(self) -> bool:
        return self.parts.worker.is_first and self.path.exists()

    def on_interrupt(self) -> Outcome | None:
        problem = self.checkpoints.save_and_wait()
        if self.parts.worker.is_first:
            with contextlib.suppress(OSError):  # then it is saved again, until the folder can be written
                self.path.unlink(missing_ok=True)
        return None if problem is None else Outcome.failure(self.parts.progress.images, problem)


class ResizeRequest(Callback):
    """Saves and waits when Ray Train wants to restart the run with more workers, so that no image is used twice."""

    POLL_SECONDS = 0.2

    def __init__(self, parts: TrainingParts, checkpoints: Checkpointing) -> None:
        self.parts = parts
        self.checkpoints = checkpoints
        self.resize = Resize(parts.config.folder)
        self.stop_file = parts.config.folder / STOP_FILE

    def wants_interrupt(self) -> bool:
        return self.parts.config.elastic is not None and self.parts.worker.is_first and self.resize.asked()

    def on_interrupt(self) -> Outcome | None:
        """Wait until the workers are ended; `None`: the request was withdrawn, and training continues."""
        with self.parts.heartbeat.busy("waiting for more workers"):
            problem = self.checkpoints.save_and_wait()
            if problem is not None:
                return Outcome.failure(self.parts.progress.images, problem)
            if self.parts.worker.is_first:
                self.resize.ready()
            while self.resize.asked() and not self.stop_file.exists():
                time.sleep(self.POLL_SECONDS)
        return None
