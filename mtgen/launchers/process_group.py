"""What Ray Train is told to do otherwise: where the workers' process group listens, and what is said of a worker that was lost."""

import os
import socket
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import ray
import ray.train
import torch.distributed as dist
from ray.train import UserCallback
from ray.train.torch import TorchConfig

from mtgen.errors import last_line
from mtgen.launchers.ray_internals import TorchBackend
from mtgen.tracking.run_log import RunLog

_listening: list[socket.socket] = []
"""The socket of the store, in the first worker's process."""


def _listen() -> tuple[str, int]:
    """A port of this worker's node, on the address at which Ray's other nodes know it."""
    address = ray.util.get_node_ip_address()
    _listening[:] = [socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)]
    return address, _listening[0].getsockname()[1]


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has an address; `None`: none has."""
    found = psutil.net_if_addrs().items()
    return next((name for name, own in found if any(one.address.partition("%")[0] == address for one in own)), None)


def _set_rank_variables() -> None:
    """Set the environment variables that say which worker this is, as torchrun names them."""
    context = ray.train.get_context()
    os.environ |= {
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
    }


def _join(place: int, address: str, port: int, world: int, backend: str, seconds: int) -> None:
    # Unless told, gloo listens where the machine's name leads to, which in many an /etc/hosts is loopback.
    if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := interface_of(ray.util.get_node_ip_address())):
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    timeout, first = timedelta(seconds=seconds), place == 0
    listening = _listening.pop().detach() if first else None
    store = dist.TCPStore(address, port, world, first, timeout, master_listen_fd=listening)  # type: ignore[attr-defined]
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)
    dist.init_process_group(backend, store=store, rank=place, world_size=world, timeout=timeout)


class _Backend(TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_set_rank_variables)
        address, port = worker_group.execute_single(0, _listen)
        world = len(worker_group)
        shared = {
            "address": address,
            "port": port,
            "world": world,
            "backend": backend_config.backend,
            "seconds": backend_config.timeout_s,
        }
        ray.get([worker_group.execute_single_async(place, _join, place, **shared) for place in range(world)])


@dataclass
class GroupConfig(TorchConfig):
    """Ray Train's configuration of torch, but its store is bound to the one address that Ray has; torch's own listens on every address."""

    @property
    def backend_cls(self) -> type[TorchBackend]:
        """What Ray Train makes the process group with."""
        return _Backend


class LostWorkerReporter(UserCallback):
    """Says in a line for each which workers were lost; runs in Ray Train's controller, whose own log is its whole traceback.

    Args:
        folder: the run's, in whose log it is written too.
    """

    def __init__(self, folder: Path) -> None:
        self._say = RunLog(folder).tee(_complain)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Name each worker that was lost, with the reason in one line."""
        for rank, error in sorted(worker_exceptions.items()):
            self._say(f"worker {rank} was lost: {last_line(error)}")


def _complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
