"""The Ray cluster that a run uses: a running one, or its own on this system."""

import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtgen.config import Config, Device, Hardware, local_hardware
from mtgen.config.hardware import hardware_without_gpus, unused_gpus
from mtgen.errors import ConfigError, TrainingError, UserError, last_line
from mtgen.launchers.ray_node import own_address, stop_signals_blocked, wait_for
from mtgen.launchers.ray_session import session_folder
from mtgen.utils import glibc_malloc

_TOKEN = secrets.token_hex(32)
"""Token of this process's own cluster; only the environment of the cluster's processes holds it."""


LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""Environment of a cluster that listens on loopback only, and of processes that join it.

Ray replaces a loopback address with the system's own, unless the first variable says that the system has no clusters.
"""


MANY_WORKERS = 64
"""More workers than these get ten minutes to start."""


def _own_token() -> dict[str, str]:
    """Environment that protects this process's own cluster from other users of the system, by a token.

    Ray requires a token by default (RAY_AUTH_MODE), but would write it to a file that others may be able to read.
    """
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return {} if given else {"RAY_AUTH_TOKEN": _TOKEN}


def _token_mode() -> dict[str, str]:
    """Environment that makes Ray use a token if this user has one; by default Ray looks for it too late."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    has_token = os.environ.get("RAY_AUTH_TOKEN") or path.is_file()
    return {"RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE") or ("token" if has_token else "disabled")}


def _on_loopback(address: str) -> bool:
    """Whether a running cluster listens on loopback only.

    Raises:
        TrainingError: nothing answers at the address.
    """
    host, _, port = address.rpartition(":")
    if not port.isdigit():  # "auto", or an address of another kind, which Ray resolves
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
    """Set `values` in this process's environment within the context."""
    before = os.environ.copy()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


NO_DASHBOARD = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
"""Environment of a cluster without a dashboard: nothing listens on port 9 (RFC 863).

Without it, Ray would use the dashboard of another cluster on this system, whose token it lacks, and the monitor of Ray
Train would fail with a traceback.
"""


def _for_workers(loopback: bool) -> dict[str, str]:
    """Environment variables for the workers, except those that a submitted job sets: Ray rejects duplicates."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    passed = [
        "MLFLOW_TRACKING_URI",
        "MTGEN_CACHE",
        "TORCH_CPP_LOG_LEVEL",
        *(["GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"] if loopback else []),
    ]
    # Each worker would print a C++ stack trace when the first one, which has the store, is lost.
    values = {"TORCH_CPP_LOG_LEVEL": "ERROR"} | glibc_malloc.child_environment()
    values |= {name: os.environ[name] for name in passed if name in os.environ}
    if "working_dir" not in job:  # a job's code is in its working directory, which Ray puts on the path
        values["PYTHONPATH"] = os.pathsep.join(
            p for p in [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")] if p
        )
    return {name: value for name, value in values.items() if name not in job.get("env_vars", {})}


def address_of(config: Config) -> str | None:
    """Address of the running cluster that a run uses; `None`: it starts its own on this system."""
    return config.address or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def ray_cluster(config: Config, cpus: int | None = None, gpus: int | None = None) -> Iterator[list[dict[str, float]]]:
    """Connect to the cluster at `config.address` or RAY_ADDRESS; without either, start one that ends with the context.

    Args:
        cpus: CPUs of a cluster on this system; default: all that this process may use.
        gpus: GPUs of a cluster on this system; default: all.

    Yields:
        The resources of each live node, such as [{"CPU": 2.0}].

    Raises:
        TrainingError: the cluster cannot be reached or started.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # else every line of a worker is printed twice
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if config.max_workers > MANY_WORKERS:
        # Ray's default of 60 s includes preparing the environment on all nodes (ray#60376)
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
    # Ray then does not change CUDA_VISIBLE_DEVICES of workers without GPUs.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = address_of(config)
    if address and address.startswith("ray://"):
        raise TrainingError(
            f"{address}: is an address of Ray Client, which cannot train; give that of the cluster's head, such as "
            "HOST:6379 (`ray status --address` takes the same)"
        )
    local: dict[str, Any] = (
        {} if address else {"include_dashboard": False, "num_cpus": cpus or _bound(), "num_gpus": gpus}
    )
    loopback = address is None or _on_loopback(address)
    own: AbstractContextManager[dict[str, str]] = session_folder() if address is None else nullcontext({})
    with (
        own as folder,
        _environment(folder | (_token_mode() if address else _own_token()) | (LOOPBACK if loopback else {})),
    ):
        passed = _for_workers(loopback)
        if not address:  # the cluster inherits the environment, so Ray starts no further processes for a runtime_env
            os.environ.update(passed | NO_DASHBOARD | {"RAY_prestart_worker_first_driver": "0"})
        import ray

        from mtgen.launchers.ray_internals import check_token, restrict_to_loopback

        restrict_to_loopback(loopback)
        try:
            if address and address.rpartition(":")[2].isdigit():
                check_token(address)
            with stop_signals_blocked():
                ray.init(
                    address=address or "local",  # without an address Ray would join any cluster on this system
                    log_to_driver=True,
                    # Without a dashboard, Ray Train's monitor warns every second that it cannot reach it.
                    logging_config=ray.LoggingConfig(log_level="ERROR"),
                    runtime_env={"env_vars": passed} if address else None,
                    **local,
                )
        except Exception as error:  # Ray also raises plain ones, for example if the cluster does not start in time
            if address:
                raise TrainingError(f"cannot reach the Ray cluster at {address}: {_reason(error)}") from error
            reason = last_line(error).rstrip(".")
            raise TrainingError(f"cannot start a Ray cluster on this system: {reason}; run `mtgen doctor`") from error
        try:
            yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
        finally:
            ray.shutdown()


def _bound() -> int | None:
    """CPUs that this process is bound to (taskset, Slurm) if fewer than the system's, which Ray counts; else `None`."""
    bound = len(os.sched_getaffinity(0))
    return bound if bound < (os.cpu_count() or bound) else None


def workers_that_fit(nodes: list[tuple[int, int]], cpus: int, gpus: int) -> int:
    """How many workers with `cpus` CPUs and `gpus` GPUs fit on nodes of (CPUs, GPUs); each worker is on one node."""
    return sum(min(node_cpus // cpus, node_gpus // gpus if gpus else node_cpus) for node_cpus, node_gpus in nodes)


def max_cpus_per_worker(nodes: list[tuple[int, int]], workers: int, gpus: int) -> int:
    """The largest number of CPUs per worker with which all workers fit at once; 0 if they do not fit with one each."""
    most = max((cpus for cpus, _ in nodes), default=0)
    return next((cpus for cpus in range(most, 0, -1) if workers_that_fit(nodes, cpus, gpus) >= workers), 0)


HARDWARE_TIMEOUT_SECONDS = 300.0
"""Seconds that a cluster has to start a process with a GPU, which may have to wait until another job frees one."""


def cluster_hardware(config: Config, resources: list[dict[str, float]]) -> Hardware:
    """What a run's cluster can train with. This process may be on a head without a GPU, so a GPU worker is asked.

    Args:
        resources: resources of each node.

    Raises:
        ConfigError: torch does not see the GPUs that the cluster has.
        TrainingError: no GPU of the cluster became free.
    """
    if address_of(config) is None:  # this system is the cluster
        return local_hardware()
    if config.device == "cpu" or not any(node.get("GPU", 0) >= 1 for node in resources):
        return hardware_without_gpus("in the Ray cluster")
    import ray

    asking = ray.remote(num_cpus=0, num_gpus=1, max_retries=1)(_hardware_of_worker).remote()
    try:
        host, found, unused = ray.get(asking, timeout=HARDWARE_TIMEOUT_SECONDS)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(asking)
        raise TrainingError(
            f"no GPU of the Ray cluster became free in {HARDWARE_TIMEOUT_SECONDS:.0f} s; see `ray status`, or set "
            "device=cpu"
        ) from None
    if "cuda" not in found.devices:
        raise ConfigError(
            f"device={config.device}: torch sees no GPU on {host}, which has one for Ray "
            f"({unused or 'see nvidia-smi there'}); or set device=cpu"
        )
    return replace(found, place="in the Ray cluster")


def _hardware_of_worker() -> tuple[str, Hardware, str]:
    """Name of one of the cluster's GPU nodes, what a process there sees, and the GPUs that torch does not see there."""
    return socket.gethostname(), local_hardware(), unused_gpus()


def free_resources() -> list[dict[str, float]]:
    """The resources of each node that no other job has."""
    from mtgen.launchers.ray_internals import available_resources

    return available_resources()


def waiting_message(workers: int, cpus: int, gpu: bool) -> str:
    """What a run waits for that has no workers yet, and what is free."""
    import ray

    free, total = ray.available_resources(), ray.cluster_resources()
    kinds = ["CPU", "GPU"] if gpu else ["CPU"]
    there = " and ".join(f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind}s" for kind in kinds)
    each = f"{cpus} CPU{'s' * (cpus > 1)}{' and 1 GPU' * gpu} each"
    return f"waiting for {workers} worker{'s' * (workers > 1)} with {each}; {there} of the cluster are free"


def cpus_per_worker(
    config: Config, resources: list[dict[str, float]], device: Device, free: list[dict[str, float]] | None = None
) -> int:
    """CPUs of each worker: as many as are free for all; 1 if there is not enough for all at present.

    Args:
        resources: resources of each node.
        free: resources of each node that no other job has; default: all.
        device: what the workers compute on; on "cuda" each has one GPU.

    Raises:
        ConfigError: there are more workers than CPUs or, when training on GPUs, than GPUs.
    """
    nodes, free_nodes = (
        [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in some]
        for some in (resources, resources if free is None else free)
    )
    gpus, given = 1 if device == "cuda" else 0, config.launch.cpus_per_worker
    least, fit = config.worker_counts[0], workers_that_fit(nodes, given or 1, gpus)
    if given and fit < least and least <= workers_that_fit(nodes, 1, gpus):
        raise ConfigError(
            f"launch.cpus_per_worker={given}: {fit} workers with that many CPUs fit, and workers={least} have to; "
            "use a smaller number"
        )
    all_cpus, all_gpus = (sum(numbers) for numbers in zip((0, 0), *nodes, strict=True))
    if least > fit and gpus:
        raise ConfigError(
            f"workers={least}: there are {all_gpus} GPUs and {all_cpus} CPUs, and every worker needs one of each on "
            f"the same node; possible: 0 to {fit}, or device=cpu"
        )
    if least > fit:
        raise ConfigError(
            f"workers={least}: there are {all_cpus} CPUs, and every worker needs one; possible: 0 to {fit}"
        )
    return given or max(1, max_cpus_per_worker(free_nodes, config.max_workers, gpus))


def _reason(error: BaseException) -> str:
    if type(error).__name__ == "AuthenticationError":
        return "the cluster requires its token; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it"
    return (
        f"{last_line(error).rstrip('.')}; check that it is running (`ray status`) and that its TLS settings are those "
        "of this process (launch/README.md)"
    )
