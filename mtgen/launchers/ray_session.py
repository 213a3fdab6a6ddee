"""The folder of a Ray cluster that ends with its run: short enough for Ray's sockets, and removed with the cluster."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtgen.errors import TrainingError

MAX_SOCKET_PATH_BYTES = 107
"""Longest path of a Unix socket on Linux (`sun_path` in unix(7), without the final zero)."""

_PREFIX = "mtgen-"
_SOCKET = f"{_PREFIX}12345678/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path of a socket below the folder for temporary files."""

REMOVAL_SECONDS = 5.0
"""Seconds to wait for Ray's last processes, which may still write to the folder."""


@contextmanager
def session_folder() -> Iterator[dict[str, str]]:
    """Make a folder for the files of a Ray cluster, and remove it at the end.

    Yields:
        The environment that makes Ray use it.

    Raises:
        TrainingError: no folder for temporary files is short enough and can be written.
    """
    folder = tempfile.mkdtemp(prefix=_PREFIX, dir=_base())
    try:
        yield {"RAY_TMPDIR": folder}
    finally:
        deadline = time.monotonic() + REMOVAL_SECONDS
        while Path(folder).exists() and time.monotonic() < deadline:
            shutil.rmtree(folder, ignore_errors=True)
            time.sleep(0.05)


def _base() -> str:
    """The first folder for temporary files whose path leaves room for the sockets: RAY_TMPDIR, TMPDIR, /tmp."""
    room = MAX_SOCKET_PATH_BYTES - len(f"/{_SOCKET}")
    given = [value for name in ("RAY_TMPDIR", "TMPDIR") if (value := os.environ.get(name))]
    for path in (*given, "/tmp"):  # noqa: S108 - mkdtemp makes the folder, for this user alone
        if len(os.fsencode(path.rstrip("/"))) <= room and os.access(path, os.W_OK | os.X_OK):
            return path
    raise TrainingError(
        f"{given[0] if given else '/tmp'}: Ray's sockets need a folder for temporary files that can be written and "  # noqa: S108 - the same
        f"whose path has at most {room} bytes; set RAY_TMPDIR to one"
    )
