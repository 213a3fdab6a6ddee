"""The Ray cluster that a run trains on: one that is running, or one of our own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtgen.config import Config, resolve_device
from mtgen.errors import ConfigError, TrainingError


@contextmanager
def ray_cluster(config: Config, cpus: int | None = None) -> Iterator[dict[str, float]]:
    """A running cluster if `config.address` or RAY_ADDRESS names one, else one on this machine that ends with us.

    Args:
        cpus: CPUs of a cluster on this machine; default: all.

    Yields:
        The cluster's resources, e.g. {"CPU": 2.0}.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # else every print of a worker comes twice
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray leaves CUDA_VISIBLE_DEVICES of workers without GPUs alone
    import ray

    address = config.address or os.environ.get("RAY_ADDRESS")
    here: dict[str, Any] = {} if address else {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "num_cpus": cpus}
    environment = {
        "PYTHONPATH": os.pathsep.join(p for p in [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")] if p),
        **{name: os.environ[name] for name in ("MLFLOW_TRACKING_URI", "MTGEN_CACHE") if name in os.environ},
    }
    try:
        ray.init(
            address=address,
            log_to_driver=True,
            # Without a dashboard, Ray Train's own watcher warns every second that it cannot ask it.
            logging_config=ray.LoggingConfig(log_level="ERROR"),
            runtime_env={"env_vars": environment},
            **here,
        )
    except Exception as error:  # Ray raises plain ones too, such as when the machine is too busy for its cluster to start in time
        where = f"the Ray cluster at {address}" if address else "a Ray cluster on this machine"
        raise TrainingError(f"cannot reach {where}: {last_line(error)}; is it running? (`ray status`)") from error
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def cpus_per_worker(config: Config, resources: dict[str, float]) -> int:
    """CPUs that each worker gets: an equal part of the cluster.

    Raises:
        ConfigError: more workers than CPUs, or than GPUs where they train on GPUs.
    """
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if config.workers > cpus:
        raise ConfigError(f"workers={config.workers}: there are {cpus} CPUs, and every worker needs one; possible: 0 to {cpus}")
    if resolve_device(config) == "cuda" and config.workers > gpus:
        raise ConfigError(
            f"workers={config.workers}: there are {gpus} GPUs, and every worker needs one; possible: 0 to {gpus}, or device=cpu"
        )
    return cpus // config.workers


def last_line(error: BaseException) -> str:
    """What an error comes to, in one line; its type where it says nothing."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
