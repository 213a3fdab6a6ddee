"""The Ray cluster that a run trains on: one that is running, or one of our own."""

import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtgen.config import Config, resolve_device
from mtgen.errors import ConfigError, TrainingError, UserError, last_line
from mtgen.launchers.ray_node import own_address, stop_signals_blocked, wait_for
from mtgen.utils import glibc_malloc

_TOKEN = secrets.token_hex(32)
"""What every process of a cluster of ours has to show; it lives in the environment of these processes alone."""


LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""Environment of a cluster that listens on loopback only, and of whoever joins it: Ray replaces a loopback address by the machine's own,
except where it is told that this system has no clusters."""


def _alone() -> dict[str, str]:
    """Environment of a cluster of ours, which demands a token even on loopback: it keeps other users of this machine out.

    Ray demands one of a new cluster by default (RAY_AUTH_MODE), but would keep it in a file that they may be able to read.
    """
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return {} if given else {"RAY_AUTH_TOKEN": _TOKEN}


def _shown() -> dict[str, str]:
    """Environment of who joins a cluster with a token: unless told, Ray finds out too late that it has one."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    there = os.environ.get("RAY_AUTH_TOKEN") or path.is_file()
    return {"RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE") or ("token" if there else "disabled")}


def _on_loopback(address: str) -> bool:
    """Whether a running cluster listens on loopback only.

    Raises:
        TrainingError: nobody answers at the address.
    """
    host, _, port = address.rpartition(":")
    if not port.isdigit():  # "auto", or an address of another kind: for Ray to judge
        return False
    try:
        wait_for(host, int(port), 10)
    except UserError as error:
        raise TrainingError(f"cannot reach the Ray cluster at {address}: {error}") from None
    if host not in ("127.0.0.1", "localhost", "::1"):
        return False
    with socket.socket() as probe:
        return probe.connect_ex((own_address(), int(port))) != 0


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """`values` in this process's environment, for a while."""
    before = os.environ.copy()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


NO_DASHBOARD = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
"""Environment of a cluster that has no dashboard: asked for one, Ray would take that of any other cluster on this machine, whose token it
lacks, and its watcher of Ray Train would end with a traceback. Nobody listens on port 9 (RFC 863)."""


def _for_workers(loopback: bool) -> dict[str, str]:
    """Environment variables that the workers need, but for those that a submitted job gives them already: Ray refuses them twice."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    passed = ["MLFLOW_TRACKING_URI", "MTGEN_CACHE", *(["GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"] if loopback else [])]
    values = glibc_malloc.child_environment() | {name: os.environ[name] for name in passed if name in os.environ}
    if "working_dir" not in job:  # else the code lies there, elsewhere on every node, and Ray has it on the path
        values["PYTHONPATH"] = os.pathsep.join(
            p for p in [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")] if p
        )
    return {name: value for name, value in values.items() if name not in job.get("env_vars", {})}


def address_of(config: Config) -> str | None:
    """The running cluster that a run is to train on; `None`: one of its own, on this machine."""
    return config.address or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def ray_cluster(config: Config, cpus: int | None = None) -> Iterator[list[dict[str, float]]]:
    """A running cluster if `config.address` or RAY_ADDRESS names one, else one on this machine that ends with us.

    Args:
        cpus: CPUs of a cluster on this machine; default: all that this process may use.

    Yields:
        The resources of each node that lives, e.g. [{"CPU": 2.0}].
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # else every print of a worker comes twice
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
    )  # Ray leaves CUDA_VISIBLE_DEVICES of workers without GPUs alone
    address = address_of(config)
    here: dict[str, Any] = {} if address else {"include_dashboard": False, "num_cpus": cpus or _bound()}
    loopback = address is None or _on_loopback(address)
    with _environment(_shown() if address else _alone()), _environment(LOOPBACK if loopback else {}):
        passed = _for_workers(loopback)
        if not address:  # the cluster's processes have it from this one, so that Ray need not start others for a run of this environment
            os.environ.update(passed | NO_DASHBOARD | {"RAY_prestart_worker_first_driver": "0"})
        import ray

        from mtgen.launchers.ray_internals import check_token, restrict_to_loopback

        restrict_to_loopback(loopback)
        try:
            if address and address.rpartition(":")[2].isdigit():
                check_token(address)
            with stop_signals_blocked():
                ray.init(
                    address=address
                    or "local",  # without an address Ray would join a cluster that it finds on this machine
                    log_to_driver=True,
                    # Without a dashboard, Ray Train's own watcher warns every second that it cannot ask it.
                    logging_config=ray.LoggingConfig(log_level="ERROR"),
                    runtime_env={"env_vars": passed} if address else None,
                    **here,
                )
        except (
            Exception
        ) as error:  # Ray raises plain ones too, such as when the machine is too busy for its cluster to start in time
            where = f"the Ray cluster at {address}" if address else "a Ray cluster on this machine"
            raise TrainingError(f"cannot reach {where}: {_reason(error)}") from error
        try:
            yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
        finally:
            ray.shutdown()


def _bound() -> int | None:
    """CPUs that this process is bound to (taskset, Slurm), where they are fewer than the machine's, which Ray would count; else `None`."""
    bound = len(os.sched_getaffinity(0))
    return bound if bound < (os.cpu_count() or bound) else None


def workers_that_fit(nodes: list[tuple[int, int]], cpus: int, gpus: int) -> int:
    """How many workers of so many CPUs and GPUs find room on nodes of (CPUs, GPUs): a worker lies on one node."""
    return sum(min(own // cpus, there // gpus if gpus else own) for own, there in nodes)


def max_cpus_per_worker(nodes: list[tuple[int, int]], workers: int, gpus: int) -> int:
    """CPUs that each of the workers gets at most, so that all find room at once; 0 where they do not with one each."""
    most = max((own for own, _ in nodes), default=0)
    return next((share for share in range(most, 0, -1) if workers_that_fit(nodes, share, gpus) >= workers), 0)


def cpus_per_worker(config: Config, resources: list[dict[str, float]]) -> int:
    """CPUs that each worker gets: an equal part of the nodes; where nodes of an elastic run are missing, one is enough.

    Args:
        resources: of each node.

    Raises:
        ConfigError: more workers than CPUs, or than GPUs where they train on GPUs.
    """
    nodes = [(int(own.get("CPU", 0)), int(own.get("GPU", 0))) for own in resources]
    gpus = 1 if resolve_device(config) == "cuda" else 0
    least, fit = config.worker_counts[0], workers_that_fit(nodes, 1, gpus)
    cpus, there = (sum(numbers) for numbers in zip((0, 0), *nodes, strict=True))
    if least > fit and gpus:
        raise ConfigError(
            f"workers={least}: there are {there} GPUs and {cpus} CPUs, and every worker needs one of each on the same node; "
            f"possible: 0 to {fit}, or device=cpu"
        )
    if least > fit:
        raise ConfigError(f"workers={least}: there are {cpus} CPUs, and every worker needs one; possible: 0 to {fit}")
    return max(1, max_cpus_per_worker(nodes, config.max_workers, gpus))


def _reason(error: BaseException) -> str:
    if type(error).__name__ == "AuthenticationError":
        return "it demands its token; give it in RAY_AUTH_TOKEN, or in a file that RAY_AUTH_TOKEN_PATH names"
    return f"{last_line(error).rstrip('.')}; is it running (`ray status`), and are its TLS settings those of this process (launch/README.md)?"
