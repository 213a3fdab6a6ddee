"""A Ray cluster of several nodes on this system."""

from pathlib import Path

from helpers.commands import Command
from mtgen.launchers.ray_node import free_port, own_address

TOKEN = "a-token-of-this-test-" + "x" * 32


class Nodes:
    """The head and further nodes on this system, each in a separate process.

    Args:
        cpus: CPUs of each node, as given to Ray.
    """

    def __init__(self, place: Path, cpus: int) -> None:
        self.place = place
        self.port = free_port()
        self.cpus = str(cpus)
        self.address = f"{own_address()}:{self.port}"
        self.all: list[Command] = []
        self.start("head", "--span", "--port", str(self.port), "--dashboard-port", str(free_port()))

    def start(self, *words: str) -> Command:
        node = Command(self.place, "cluster", *words, "--cpus", self.cpus, RAY_AUTH_TOKEN=TOKEN, RAY_TMPDIR="/tmp")  # noqa: S108 - sockets' paths are short
        self.all.append(node)
        node.until(lambda: "Ray runtime started" in node.said)
        return node

    def join(self) -> Command:
        return self.start("join", self.address)

    def end(self) -> None:
        for node in reversed(self.all):
            if node.process.poll() is None:
                node.process.terminate()
                node.wait()
