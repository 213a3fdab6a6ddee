"""Ray places the workers and replaces lost ones: the one file that imports it."""

import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtgen import checkpoint
from mtgen.config import Config, resolve_device, validate
from mtgen.errors import CheckpointError, ConfigError, TrainingError, UserError
from mtgen.model import build
from mtgen.training.loop import Snapshot, train
from mtgen.training.outcome import STOP, Outcome, Place
from mtgen.training.samples import open_data

Say = Callable[[str], None]


def threads_for(cpus: int) -> tuple[int, int]:
    """CPUs of a worker -> (threads of torch, threads of DALI); together they are the CPUs.

    On one or two CPUs decoding has no thread of its own: at the sizes that one trains there it takes under a hundredth of the time.
    """
    decoding = max(1, cpus // 4)
    return (cpus if cpus <= 2 else cpus - decoding), decoding


def _place_worker(config: Config, rank: int, world: int, cpus: int) -> Place:
    torch_threads, decoding = threads_for(cpus)
    return Place(rank, world, resolve_device(config), torch_threads, decoding)


def _snapshots(config: Config) -> Snapshot:
    from mtgen.snapshot import Snapshots

    return Snapshots(config)


def _worker(arguments: dict[str, Any]) -> None:
    """What each of Ray's workers runs."""
    import ray.train

    context = ray.train.get_context()
    config = validate(arguments["config"])
    place = _place_worker(config, context.get_world_rank(), context.get_world_size(), arguments["cpus"])
    train(config, place, arguments["snapshots"](config) if place.rank == 0 else None)


def run_here(config: Config) -> Outcome:
    """Train in this process, without Ray, on OMP_NUM_THREADS threads, else all CPUs: for a debugger (`workers=0`).

    Its process group stays for the next training of this process: DeepSpeed keeps what it made of the first one.
    """
    import torch.distributed as dist

    os.environ.setdefault("LOCAL_RANK", "0")
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    cpus = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    return train(config, _place_worker(config, 0, 1, cpus), _snapshots(config))


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
        raise TrainingError(f"cannot reach {where}: {_last_line(error)}; is it running? (`ray status`)") from error
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


def run_on_ray(config: Config, snapshots: Callable[[Config], Snapshot] = _snapshots, cpus: int | None = None) -> Outcome:
    """Train on workers that Ray Train places; a worker that is lost is replaced, and training goes on from the last checkpoint.

    Args:
        snapshots: makes, on rank 0, what is called every `evaluate.every` images; default: pictures and quick metrics.
        cpus: CPUs of a cluster on this machine; default: all.
    """
    with ray_cluster(config, cpus) as resources:
        share = cpus_per_worker(config, resources)
        from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        gpu = resolve_device(config) == "cuda"
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"config": config.model_dump(mode="json"), "cpus": share, "snapshots": snapshots},
            scaling_config=ScalingConfig(
                num_workers=config.workers, use_gpu=gpu, resources_per_worker={"CPU": share, **({"GPU": 1} if gpu else {})}
            ),
            run_config=RunConfig(  # type: ignore[call-arg]  # typed as Ray Train 1's; the one at hand is 2's
                name="ray",
                storage_path=str(config.folder),
                failure_config=FailureConfig(max_failures=config.train.restarts),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        )
        try:
            trainer.fit()
        except Exception as error:
            (config.folder / "driver-error.log").write_text(traceback.format_exc(), encoding="utf-8")
            raise TrainingError(
                f"the workers were lost {config.train.restarts + 1} times (train.restarts): {_last_line(error)}; the whole story is in "
                f"{config.folder / 'driver-error.log'}. Start the same command again to go on from the last checkpoint"
            ) from error
    outcome = Outcome.read(config.folder)
    if outcome is None:
        raise TrainingError(f"the workers ended without a word; look into {config.folder}")
    return outcome


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Only one process trains a run: a lock that the system lifts when its holder dies.

    Raises:
        TrainingError: somebody else holds it, or the folder cannot be written.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written ({error.strerror}); give runs=FOLDER that is yours, or another name") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read() or "another process"
            raise TrainingError(f"{folder}: is being trained already, by {holder}; wait for it, or give another name") from error
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


class StopRequests:
    """The first Ctrl-C or SIGTERM asks the run for a checkpoint and its end; the second one interrupts at once."""

    def __init__(self, folder: Path, say: Say) -> None:
        self.file, self.say = folder / STOP, say
        self.file.unlink(missing_ok=True)
        self.earlier = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def _handle(self, number: int, frame: Any) -> None:
        if self.file.exists():
            raise KeyboardInterrupt
        self.file.touch()
        self.say("stopping: writing a checkpoint first (once more Ctrl-C: at once)")

    def end(self) -> None:
        """Put the earlier handlers back."""
        for number, handler in self.earlier.items():
            signal.signal(number, handler)
        self.file.unlink(missing_ok=True)


def _before(config: Config, resume: bool, say: Say) -> int:
    """Images that the run's newest good checkpoint has seen; 0 for a new run.

    Raises:
        CheckpointError: `resume` is asked for and there is nothing to go on from.
    """
    found = checkpoint.latest(config.folder / "checkpoints", warn=lambda text: None)  # the workers will name damaged ones
    if found is None:
        if resume:
            raise CheckpointError(f"{config.folder}: has no checkpoint to go on from; leave --resume out to begin the run")
        return 0
    if found.images < config.train.images:
        say(f"going on with {config.name} from {found.images:,} images")
    return found.images


def launch(config: Config, watch: Callable[[Path, int, Callable[[], bool]], None], say: Say, resume: bool = False) -> Outcome:
    """Train a run, or go on with it, from this process.

    Training goes on in a thread (it waits for Ray's workers), while this thread shows the progress and takes signals.

    Args:
        watch: shows progress from (the run's folder, images seen so far) until the function that it is given says that training has ended.
        say: prints a line.
        resume: insist on a checkpoint to go on from.

    Raises:
        UserError: what keeps the run from going on, in one message.
    """
    folder = config.folder
    with run_lock(folder):
        start = _before(config, resume, say)
        if start >= config.train.images:
            return Outcome("finished", start, "it had finished before; a larger train.images goes on")
        build(config, open_data(config).card)  # what is wrong with data or tasks is said before any worker starts
        (folder / "outcome.json").unlink(missing_ok=True)
        stop = StopRequests(folder, say)
        result: list[Outcome | BaseException] = []

        def work() -> None:
            try:
                result.append(run_here(config) if config.workers == 0 else run_on_ray(config))
            except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
                result.append(error)

        thread = threading.Thread(target=work, name="training", daemon=True)
        try:
            thread.start()
            watch(folder, start, thread.is_alive)
            while thread.is_alive():
                thread.join(0.2)
        finally:
            stop.end()
    (ended,) = result
    if isinstance(ended, UserError):
        raise ended
    if isinstance(ended, BaseException):
        traceback.print_exception(ended, file=sys.stderr)
        raise TrainingError(f"training ended with {type(ended).__name__}: {_last_line(ended)}") from ended
    return ended
