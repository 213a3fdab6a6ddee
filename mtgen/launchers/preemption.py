"""Notices that a node of the cluster is about to leave: the run writes a checkpoint, and the loss is no failure.

A node gives notice by Ray's drain protocol: that of an autoscaler or of KubeRay, or `mtgen cluster join` at SIGTERM.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from mtgen.training.protocol import CHECKPOINT_FILE
from mtgen.utils.periodic import Periodic

POLL_SECONDS = 1.0
"""Seconds between two questions to Ray which nodes leave."""


class DrainWatch:
    """Asks the workers for a checkpoint when a node is about to leave; a context manager with a thread.

    Args:
        folder: folder of the run.
        draining: ids of the nodes that are about to leave, with the time at which they do.
        say: prints a line about each such node.
    """

    def __init__(self, folder: Path, draining: Callable[[], Mapping[str, int]], say: Callable[[str], None]) -> None:
        self._file = folder / CHECKPOINT_FILE
        self._draining = draining
        self._say = say
        self._known: set[str] = set()
        self._checks = Periodic(POLL_SECONDS, self.check, "drain")

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):  # of an earlier driver; a read-only folder is reported by the workers
            self._file.unlink(missing_ok=True)
        self._checks.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._checks.stop()

    def check(self) -> None:
        """Ask for a checkpoint if a node has given notice since the last call."""
        if new := self._draining().keys() - self._known:
            self._known |= new
            nodes = f"{len(new)} node{'s' * (len(new) > 1)} of the cluster"
            try:
                self._file.touch()
                self._say(f"{nodes} will leave: writing a checkpoint; this is no failure")
            except OSError as error:
                self._say(f"warning: {nodes} will leave without a checkpoint: {self._file}: {error.strerror}")


def give_notice(raylet_parent: int, address: str, seconds: int, environment: Mapping[str, str]) -> bool:
    """Tell the cluster that this system's node leaves in `seconds`; returns whether the cluster has taken the notice.

    Args:
        raylet_parent: process of `ray start`, whose child is the node's raylet.
        address: HOST:PORT of the head.
        environment: with the cluster's token.
    """
    words = [sys.executable, "-m", __name__, address, str(seconds), *map(str, _ports(raylet_parent))]
    return subprocess.run(words, env=dict(environment), check=False, start_new_session=True).returncode == 0


def _ports(parent: int) -> list[int]:
    """The ports on which a node's raylet listens, by one of which the cluster knows it."""
    raylets = [child for child in psutil.Process(parent).children(recursive=True) if child.name() == "raylet"]
    sockets = [own for raylet in raylets for own in raylet.net_connections("tcp") if own.status == psutil.CONN_LISTEN]
    return [own.laddr.port for own in sockets]


def main() -> None:
    """Send the notice; a process of its own, since a node's parent has not imported Ray."""
    from mtgen.launchers.ray_internals import drain_node

    address, seconds, *ports = sys.argv[1:]
    sys.exit(0 if drain_node(address, {int(port) for port in ports}, int(seconds)) else 1)


if __name__ == "__main__":
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    main()
