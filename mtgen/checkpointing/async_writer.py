"""Writing checkpoints in a background thread while training continues."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mtgen.checkpointing import checkpoint
from mtgen.errors import UserError


class CheckpointWriter:
    """Writes one checkpoint at a time; used by the first worker. After a failure no more checkpoints are written.

    Args:
        on_written: called in the thread after each complete checkpoint, with its folder and the seconds it took.

    Attributes:
        seconds: how long writing the last checkpoint took.
    """

    def __init__(self, on_written: Callable[[Path, float], None]) -> None:
        self.seconds = 0.0
        self._on_written = on_written
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._last: Future[None] | None = None

    def begin(self, *arguments: Any) -> None:
        """Wait for the previous checkpoint, then start writing this one.

        Args:
            arguments: those of `checkpoint.save`. They must not change after this call: pass copies of the tensors.
        """
        if self.problem(wait=True) is None:
            self._last = self._thread.submit(self._write, *arguments)

    def problem(self, wait: bool = False) -> UserError | None:
        """The error of the last checkpoint; without `wait`, `None` also means that it is still being written."""
        if self._last is None or not (wait or self._last.done()):
            return None
        error = self._last.exception()
        if error is None or isinstance(error, UserError):
            return error
        raise error

    def close(self) -> None:
        """Wait for the checkpoint that is being written, then end the thread."""
        self._thread.shutdown()

    def _write(self, root: Path, *arguments: Any) -> None:
        begin = time.monotonic()
        folder = checkpoint.save(root, *arguments)
        self.seconds = time.monotonic() - begin
        self._on_written(folder, self.seconds)
