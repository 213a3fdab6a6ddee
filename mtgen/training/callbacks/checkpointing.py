"""A checkpoint every `checkpoint.every` images, and one at the end."""

from pathlib import Path

from mtgen.checkpointing import checkpoint
from mtgen.checkpointing.async_writer import CheckpointWriter
from mtgen.checkpointing.mirror import CheckpointStore, Mirror
from mtgen.errors import UserError
from mtgen.training.callbacks.base import Callback
from mtgen.training.callbacks.guards import find_divergence
from mtgen.training.callbacks.snapshotting import Snapshotting
from mtgen.training.protocol import Outcome
from mtgen.training.run_setup import TrainingParts


class Checkpointing(Callback):
    """Copies the state of all workers to the first one, whose writer thread saves it while training continues.

    Copying is a pause for the timer. A failed write is known at a later step and ends the run then.

    Args:
        snapshots: has the metrics that are stored with the checkpoint of the same step.
    """

    def __init__(self, parts: TrainingParts, snapshots: Snapshotting) -> None:
        self.parts = parts
        self.snapshots = snapshots
        self.root = parts.config.folder / "checkpoints"
        self.writer = CheckpointWriter(self._on_written)
        self.mirror = _open_mirror(parts, self.root)
        self._saved_at = parts.progress.images
        self._stall_seconds = 0.0

    def wants_interrupt(self) -> bool:
        return self.writer.problem() is not None

    def on_interrupt(self) -> Outcome | None:
        problem = self.parts.consensus.first_error(self.writer.problem())
        return None if problem is None else Outcome.failure(self.parts.progress.images, problem)

    def on_step_end(self) -> Outcome | None:
        progress = self.parts.progress
        if progress.passed(self.parts.config.checkpoint.every) and not progress.finished:  # `on_end` saves the last one
            self._save()
        return None

    def on_end(self, outcome: Outcome) -> Outcome:
        """Save the last checkpoint and wait for it, also if the run failed; a diverged state is not worth saving."""
        diverged = find_divergence(self.parts) is not None
        problem = self._wait() if diverged else self.save_and_wait()
        self.writer.close()
        if problem is None or outcome.failed:
            return outcome
        return Outcome.failure(self.parts.progress.images, problem)

    def close(self) -> None:
        """Wait until the mirror has the last checkpoint."""
        if self.mirror is not None:
            self.mirror.close()

    def numbers(self) -> dict[str, float]:
        if not self.writer.seconds:
            return {}
        return {"checkpoint/stall_seconds": self._stall_seconds, "checkpoint/write_seconds": self.writer.seconds}

    def save_and_wait(self) -> UserError | None:
        """Save unless this step is saved, and wait until the checkpoint is on disk; returns the error of any worker."""
        if self._saved_at != self.parts.progress.images:
            self._save()
        return self._wait()

    def _wait(self) -> UserError | None:
        return self.parts.consensus.first_error(self.writer.problem(wait=True))

    def _save(self) -> None:
        parts, progress = self.parts, self.parts.progress
        with parts.heartbeat.busy("writing a checkpoint"):
            parts.timer.pause()
            copied = parts.state.state_dict(
                {"images": progress.images, "steps": progress.steps, "seconds": parts.timer.seconds}
            )
            if copied is not None:
                tensors, state = copied
                state[checkpoint.METRICS_KEY] = self.snapshots.metrics()
                retention = parts.config.checkpoint.retention
                self.writer.begin(self.root, progress.images, tensors, state, parts.config.to_yaml(), retention)
            self._stall_seconds = parts.timer.resume()
        self._saved_at = progress.images

    def _on_written(self, folder: Path, seconds: float) -> None:
        """Report a complete checkpoint; called in the writer thread."""
        if self.parts.logger is not None:
            self.parts.logger.checkpoint(folder, seconds)
        if self.mirror is not None:
            self.mirror.notify()


def _open_mirror(parts: TrainingParts, root: Path) -> Mirror | None:
    """The mirror of a run that has `checkpoint.mirror`, on the first worker."""
    settings = parts.config.checkpoint
    if not parts.worker.is_first or settings.mirror is None:
        return None
    mirror = Mirror(CheckpointStore(settings.mirror, parts.config.name), root, settings.retention, parts.warn)
    mirror.notify()  # an earlier part of the run may have left checkpoints that were not copied
    return mirror
