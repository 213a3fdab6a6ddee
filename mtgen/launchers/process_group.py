"""Changes to Ray Train: the address on which the process group listens, and the report of lost workers."""

import errno
import os
import socket
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import ray
import ray.train
import torch.distributed as dist
from ray.train import UserCallback
from ray.train.torch import TorchConfig

from mtgen.errors import TrainingError, last_line, summarize_lines
from mtgen.launchers.ray_internals import TorchBackend
from mtgen.tracking.run_log import RunLog

MAX_LOST_LINES = 5
"""Lost workers that are named at once: all others of the group are lost with the first one."""

_listening: list[socket.socket] = []
"""The listening socket of the store, in the process of worker 0."""


def listen(address: str, ports: range) -> socket.socket:
    """Listen on the first free one of the ports; port 0 is any free port.

    Raises:
        TrainingError: none is free.
    """
    for port in ports:
        try:
            return socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise TrainingError(f"launch.ports={ports[0]}-{ports[-1]}: no port is free on {address}; use a larger range")


def _listen(ports: range) -> tuple[str, int]:
    """Listen on the address under which Ray's other nodes know this one; return the address and the port."""
    address = ray.util.get_node_ip_address()
    _listening[:] = [listen(address, ports)]
    return address, _listening[0].getsockname()[1]


def interface_of(address: str) -> str | None:
    """The network interface of this system with an address; `None` if no interface has it."""
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, own in interfaces if any(a.address.partition("%")[0] == address for a in own)), None)


def _set_variables(given: dict[str, str]) -> None:
    """Set the variables of the driver, and those that say which worker this is, as torchrun names them."""
    context = ray.train.get_context()
    os.environ |= given | {
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
    }


def _join(rank: int, address: str, port: int, world: int, backend: str, seconds: int) -> None:
    # By default gloo listens on the address of the host name, which is loopback in many an /etc/hosts.
    if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := interface_of(ray.util.get_node_ip_address())):
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    timeout, first = timedelta(seconds=seconds), rank == 0
    listening = _listening.pop().detach() if first else None
    store = dist.TCPStore(address, port, world, first, timeout, master_listen_fd=listening)  # type: ignore[attr-defined]
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)


class _Backend(TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_set_variables, backend_config.environment)
        address, port = worker_group.execute_single(0, _listen, backend_config.ports)
        world = len(worker_group)
        shared = {
            "address": address,
            "port": port,
            "world": world,
            "backend": backend_config.backend,
            "seconds": backend_config.timeout_s,
        }
        ray.get([worker_group.execute_single_async(rank, _join, rank, **shared) for rank in range(world)])


@dataclass
class GroupConfig(TorchConfig):
    """Ray Train's torch configuration with a store that listens on Ray's address alone; torch's listens on all.

    Attributes:
        environment: variables for the workers; they go from process to process and, unlike those of a `runtime_env`,
            into no log and no dashboard.
        ports: of which the store takes one.
    """

    environment: dict[str, str] = field(default_factory=dict, repr=False)
    ports: range = range(1)

    @property
    def backend_cls(self) -> type[TorchBackend]:
        """The class with which Ray Train starts the process group."""
        return _Backend


class LostWorkerReporter(UserCallback):
    """Reports each lost worker in one line, where Ray Train's controller logs a whole traceback.

    Args:
        folder: folder of the run, whose log gets the lines too.
    """

    def __init__(self, folder: Path) -> None:
        self._say = RunLog(folder).tee(_complain)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Report the first lost workers with rank and the last line of the error, and the number of the others."""
        lines = [f"worker {rank} was lost: {last_line(error)}" for rank, error in sorted(worker_exceptions.items())]
        for line in summarize_lines(lines, MAX_LOST_LINES, "workers, which a lost one takes down"):
            self._say(line)


def _complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
