"""Checkpoints are written by a thread of their own while training goes on."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mtgen.checkpointing import checkpoint
from mtgen.errors import UserError


class CheckpointWriter:
    """Writes at most one checkpoint at a time; for the first worker. What a failed one met stays its `problem`: none is written after it.

    Args:
        whole: called in that thread after each checkpoint that is whole, with its folder and how long it took to write.

    Attributes:
        seconds: how long the last one took to write.
    """

    def __init__(self, whole: Callable[[Path, float], None]) -> None:
        self.seconds = 0.0
        self._whole = whole
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._last: Future[None] | None = None

    def begin(self, *arguments: Any) -> None:
        """Wait for the checkpoint before, then write this one, as `checkpoint.save` does.

        Args:
            arguments: `save`'s. Nobody changes them after this call: tensors are copies of those that training goes on with.
        """
        if self.problem(wait=True) is None:
            self._last = self._thread.submit(self._write, *arguments)

    def problem(self, wait: bool = False) -> UserError | None:
        """What the last checkpoint met; without `wait` it may be too early to tell."""
        if self._last is None or not (wait or self._last.done()):
            return None
        error = self._last.exception()
        if error is None or isinstance(error, UserError):
            return error
        raise error

    def close(self) -> None:
        """End the thread, after what it is writing."""
        self._thread.shutdown()

    def _write(self, root: Path, *arguments: Any) -> None:
        begin = time.monotonic()
        folder = checkpoint.save(root, *arguments)
        self.seconds = time.monotonic() - begin
        self._whole(folder, self.seconds)
