"""Training on workers that Ray places and replaces when they are lost, and in the current process."""

import contextlib
import os
import socket
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from mtgen.config import Config, Device, decide, decide_here, validate
from mtgen.config.hardware import use_device
from mtgen.errors import TrainingError, Unreachable, last_line
from mtgen.launchers.preemption import DrainWatch
from mtgen.launchers.ray_cluster import (
    address_of,
    cluster_hardware,
    cpus_per_worker,
    free_resources,
    ray_cluster,
    waiting_message,
)
from mtgen.launchers.restarts import RestartBudget, newest_checkpoint
from mtgen.launchers.shared_folder import check_shared, write_nonce
from mtgen.launchers.watchdog import HangWatchdog, phase_limits
from mtgen.launchers.worker_environment import worker_environment
from mtgen.launchers.worker_processes import collect_stacks, kill
from mtgen.report import refresh_report
from mtgen.training.consensus import GROUP_TIMEOUT
from mtgen.training.protocol import Outcome, SnapshotCallback, WorkerContext


def threads_for(cpus: int) -> tuple[int, int]:
    """CPUs of a worker -> (threads of torch, threads of DALI), whose sum is the number of CPUs.

    On one or two CPUs torch uses all: at the image sizes of such runs, decoding takes less than 1 % of the time.
    """
    decoding = max(1, cpus // 4)
    return (cpus if cpus <= 2 else cpus - decoding), decoding


def _place_worker(device: Device, rank: int, world: int, cpus: int, node: str = "") -> WorkerContext:
    use_device(device, int(os.environ["LOCAL_RANK"]))
    torch_threads, decoding = threads_for(cpus)
    return WorkerContext(rank, world, device, torch_threads, decoding, node)


def _snapshots(config: Config, worker: WorkerContext) -> SnapshotCallback:
    """Pictures and quick metrics; on a GPU, the worker's other threads are idle meanwhile and decode too."""
    from mtgen.evaluation.snapshots import Snapshots

    idle = worker.threads if worker.device == "cuda" else 0
    return Snapshots(config, worker.device, worker.decoding_threads + idle)


def _worker(arguments: dict[str, Any]) -> None:
    """The training function of each Ray worker."""
    import ray
    import ray.train

    from mtgen.training.trainer import train

    context = ray.train.get_context()
    config = validate(arguments["config"])
    where = f"worker {context.get_world_rank()} on {socket.gethostname()}"
    check_shared(config.folder, arguments["nonce"], arguments["images"], where)
    place = _place_worker(
        arguments["device"],
        context.get_world_rank(),
        context.get_world_size(),
        arguments["cpus"],
        ray.get_runtime_context().get_node_id(),
    )
    snapshots = None
    if place.is_first:
        snapshots = arguments["snapshots"](config) if arguments["snapshots"] else _snapshots(config, place)
    train(config, place, snapshots, refresh_report)


def failure_reason(config: Config, error: Exception) -> TrainingError:
    """Why Ray Train gave up, in one line."""
    from ray.train import WorkerGroupError

    if isinstance(error, WorkerGroupError):
        what = (
            f"the workers were lost {config.train.max_restarts + 1} times in {config.train.restart_window:g} minutes "
            "without a new checkpoint (train.max_restarts, train.restart_window)"
        )
    else:
        what = "the Ray cluster, or the node of this process, was lost"
    return TrainingError(
        f"{what}: {last_line(error)}; see {config.folder / 'driver-error.log'} for the traceback. "
        "Run the same command again to resume from the last checkpoint"
    )


def run_here(config: Config) -> Outcome:
    """Train in this process without Ray (`workers=0`), on OMP_NUM_THREADS threads or else all CPUs; for debugging.

    The process group stays open for further runs in this process, because DeepSpeed keeps references to the first one.
    """
    import torch.distributed as dist

    from mtgen.training.trainer import train

    os.environ.setdefault("LOCAL_RANK", "0")
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    cpus = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    config, device = decide_here(config)
    place = _place_worker(device, 0, 1, cpus)
    return train(config, place, _snapshots(config, place), refresh_report)


def run_on_ray(
    config: Config,
    snapshots: Callable[[Config], SnapshotCallback] | None = None,
    cpus: int | None = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Train on workers that Ray Train places and replaces if they are lost or hang, from the last checkpoint.

    Args:
        snapshots: creates the callback of rank 0 for every `evaluate.every` images; default: pictures and metrics.
        cpus: CPUs of a cluster on this system; default: all.
        say: prints a line about each hung worker.

    Raises:
        ConfigError: the cluster does not have the device, or the device does not have the precision.
        TrainingError: the workers were lost too often, or the cluster was lost.
        Unreachable: they were restarted too often because a store did not answer.
    """
    with ray_cluster(config, cpus) as nodes:
        config, device = decide(config, cluster_hardware(config, nodes))
        own_cluster = address_of(config) is None
        worker_cpus = cpus_per_worker(config, nodes, device, None if own_cluster else free_resources())
        from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig

        from mtgen.launchers.process_group import GroupConfig, LostWorkerReporter
        from mtgen.launchers.ray_internals import DriverTrainer, draining_nodes, folder_problem

        gpu = device == "cuda"
        counts = config.worker_counts
        trainer = DriverTrainer(
            _worker,
            counts=counts,
            folder=config.folder,
            own_cluster=own_cluster,
            budget=RestartBudget(
                config.train.max_restarts, config.train.restart_window, partial(newest_checkpoint, config.folder)
            ),
            train_loop_config={
                "config": config.model_dump(mode="json"),
                "device": device,
                "cpus": worker_cpus,
                "snapshots": snapshots,
                "nonce": write_nonce(config.folder),
                "images": newest_checkpoint(config.folder),
            },
            scaling_config=ScalingConfig(  # type: ignore[call-arg]  # typed as Ray Train 1's class; it is 2's
                num_workers=(counts[0], counts[-1]) if len(counts) > 1 else counts[0],  # type: ignore[arg-type]  # as above
                use_gpu=gpu,
                elastic_resize_monitor_interval_s=config.elastic.every if config.elastic else 60.0,
                resources_per_worker={"CPU": worker_cpus, **({"GPU": 1} if gpu else {})},
            ),
            run_config=RunConfig(  # type: ignore[call-arg]  # as above
                name="ray",
                storage_path=str(config.folder),
                failure_config=FailureConfig(  # `RestartBudget` counts
                    max_failures=-1,
                    max_preemption_failures=-1,  # type: ignore[call-arg]  # as above
                ),
                callbacks=[LostWorkerReporter(config.folder)],  # type: ignore[list-item]  # as above
                # Its log has tracebacks, even of harmless errors; `LostWorkerReporter` and `fit` report in one line.
                logging_config=LoggingConfig(log_level="CRITICAL"),
            ),
            torch_config=GroupConfig(
                backend="nccl" if gpu else "gloo",
                # workers wait for the gradients of one that waits for its data
                timeout_s=int(GROUP_TIMEOUT.total_seconds() + config.data.patience),
                environment=worker_environment(config),
                ports=config.launch.port_range,
            ),
        )
        try:
            drain = DrainWatch(config.folder, draining_nodes, say)
            watchdog = HangWatchdog(
                config.folder,
                config.train.heartbeat_timeout,
                phase_limits(config.data.patience),
                kill,
                collect_stacks,
                say,
                waiting=lambda: waiting_message(counts[0], worker_cpus, gpu),
            )
            with watchdog, drain:
                trainer.fit()
        except Exception as error:
            with contextlib.suppress(OSError):  # a full disk is reported by the workers' error
                (config.folder / "driver-error.log").write_text(traceback.format_exc(), encoding="utf-8")
            if (problem := folder_problem(error)) is not None:
                raise problem from error
            outcome = Outcome.read(config.folder)
            if outcome is not None and outcome.exit_status == Unreachable.status:
                raise Unreachable(outcome.message) from error
            raise failure_reason(config, error) from error
    outcome = Outcome.read(config.folder)
    if outcome is None:
        raise TrainingError(f"workers exited without reporting an outcome; see their output and {config.folder}")
    return outcome
