"""Checks that all workers see the run's folder that the driver sees, and not another one under the same path."""

import secrets
import time
from pathlib import Path

from mtgen.errors import TrainingError
from mtgen.launchers.restarts import newest_checkpoint

NONCE_FILE = ".driver"
"""In the run's folder: what each worker has to read there."""

WAIT_SECONDS = 90.0
"""Seconds in which a file has to appear on all nodes: NFS keeps for up to a minute that a file does not exist."""


class FolderNotShared(TrainingError):
    """A worker does not see the run's folder; further starts would not help."""


def write_nonce(folder: Path) -> str:
    """Write a random text into the run's folder, and return it.

    Raises:
        TrainingError: the folder cannot be written.
    """
    nonce = secrets.token_hex(16)
    try:
        (folder / NONCE_FILE).write_text(nonce, encoding="utf-8")
    except OSError as error:
        raise TrainingError(
            f"{folder}: cannot be written ({error.strerror}); free disk space or fix its permissions"
        ) from error
    return nonce


def check_shared(folder: Path, nonce: str, images: int, where: str, wait_seconds: float = WAIT_SECONDS) -> None:
    """Check that `folder` is the one of the driver that wrote `nonce`, and has the checkpoint that the driver found.

    Args:
        images: newest checkpoint that the driver found.
        where: the worker and its node, for the error.

    Raises:
        FolderNotShared: it is not, or has less progress.
    """
    remedy = "set runs=FOLDER to a file system that all nodes mount under the same path"
    deadline = time.monotonic() + wait_seconds
    while (found := _read(folder / NONCE_FILE)) != nonce or newest_checkpoint(folder) < images:
        if time.monotonic() >= deadline:
            if found == nonce:
                newest = newest_checkpoint(folder)
                there = "no checkpoint" if newest < 0 else f"no checkpoint after {newest:,} images"
                raise FolderNotShared(
                    f"{where} sees {there} in {folder}, where the driver found one of {images:,}; {remedy}"
                )
            raise FolderNotShared(f"{where} does not see {folder} as the driver does; {remedy}")
        time.sleep(min(0.5, max(deadline - time.monotonic(), 0.0)))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
