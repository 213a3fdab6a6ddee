"""The driver of a run: locks its folder, handles stop signals, and waits for the workers."""

import contextlib
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

from rich.console import Console

from mtgen.checkpointing import checkpoint
from mtgen.checkpointing.checkpoint import Checkpoint
from mtgen.checkpointing.mirror import CheckpointStore, restore
from mtgen.config import Config, decide_here
from mtgen.config.hardware import unused_gpus
from mtgen.data.validation import open_validation, validates_on_test, without_held_out
from mtgen.errors import ERROR_BY_STATUS, CheckpointError, ConfigError, TrainingError, UserError, last_line
from mtgen.launchers.ray_cluster import address_of
from mtgen.launchers.ray_workers import run_here, run_on_ray
from mtgen.models.model import build
from mtgen.tracking.progress_bar import TrainingProgress
from mtgen.tracking.run_log import RunLog
from mtgen.training.dataset import VALIDATION_FACT, open_data
from mtgen.training.protocol import OUTCOME_FILE, STOP_FILE, Outcome
from mtgen.utils.shell import shell_command
from mtgen.utils.system import code_version, file_system

DriverSay = Callable[[str], None]
WatchCallback = Callable[[Path, int, Callable[[], bool]], None]


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock with which only one process trains a run; the system releases it when that process dies.

    Raises:
        TrainingError: another process holds it, the folder cannot be written, or its file system has no locks.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise TrainingError(
            f"{folder}: cannot be written ({error.strerror}); set runs=FOLDER to a folder of yours, or use another name"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read() or "another process"
            raise TrainingError(
                f"{folder}: is already being trained, by {holder}; wait for it, or use another name"
            ) from error
        except OSError as error:
            raise TrainingError(
                f"{folder}: cannot be locked against a second process ({error.strerror}), file system: "
                f"{file_system(folder)}; set runs=FOLDER to a file system with locks (NFS: mounted without nolock)"
            ) from error
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


class StopRequests:
    """Signal handlers: the first Ctrl-C or SIGTERM stops the run after a checkpoint, the second one immediately.

    SIGUSR1, with which schedulers warn, stops the run after a checkpoint, even if it is repeated.
    """

    def __init__(self, folder: Path, say: DriverSay) -> None:
        self.file = folder / STOP_FILE
        self.say = say
        self.file.unlink(missing_ok=True)
        self.earlier = {
            number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        }

    def _handle(self, number: int, frame: Any) -> None:
        if self.file.exists():
            if number == signal.SIGUSR1:
                return
            raise KeyboardInterrupt
        try:
            self.file.touch()
        except OSError as error:
            self.say(f"stopping immediately, without a checkpoint: {self.file} cannot be written ({error.strerror})")
            raise KeyboardInterrupt from None
        self.say("stopping after a checkpoint (press Ctrl-C again to stop immediately)")

    def end(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self.earlier.items():
            signal.signal(number, handler)
        with contextlib.suppress(OSError):  # if it cannot be removed, the next start removes it
            self.file.unlink(missing_ok=True)


def _before(config: Config, new: bool, require_checkpoint: bool, say: DriverSay) -> Checkpoint | None:
    """The run's newest good checkpoint, fetched from the mirror if the folder has none; `None` for a new run.

    Raises:
        CheckpointError: `require_checkpoint` is set and there is no checkpoint; or the mirror does not answer.
        ConfigError: `new` is set and the run exists; or checkpoint.mirror is not an address.
    """
    root, mirror = config.folder / "checkpoints", config.checkpoint.mirror
    store = None if mirror is None else CheckpointStore(mirror, config.name)
    if new and ((config.folder / "config.yaml").exists() or checkpoint.checkpoint_folders(root)):
        raise ConfigError(
            f"name={config.name}: {config.folder} exists; choose another name, or leave --new out to resume it"
        )
    if new and store is not None and store.checkpoints():
        raise ConfigError(
            f"name={config.name}: {store} has a run of this name; choose another name, or leave --new out to resume it"
        )
    if (
        store is not None
        and not checkpoint.checkpoint_folders(root)
        and restore(store, root, warn=lambda text: say(f"warning: {text}")) is not None
    ):
        say(f"the newest checkpoint was fetched from {store}")
    found = checkpoint.latest(root, warn=lambda text: None)  # the workers name damaged ones
    if found is None:
        if require_checkpoint:
            raise CheckpointError(
                f"{config.folder}: has no checkpoint to resume from; leave --require-checkpoint out to start the run"
            )
        return None
    if found.images < config.train.images:
        say(f"resuming {config.name} from {found.images:,} images")
    return found


def _with_validation(config: Config, before: Checkpoint | None, say: DriverSay) -> Config:
    """The configuration with the validation split of the run's checkpoint; says where that is the test split.

    A run whose checkpoint holds no samples out, such as one of an older version, continues on all of its samples.
    """
    data = config.data
    if before is not None and not (before.state.get("order") or {}).get(VALIDATION_FACT):
        data = without_held_out(data)
    if validates_on_test(data):
        why = "" if data == config.data else ", as before"
        say(
            f"warning: snapshots, alarms and checkpoint.best read the test split{why}, so its metrics flatter what is "
            "chosen by them; a new run without data.val_split does not read it"
        )
    return config.model_copy(update={"data": data})


def _version() -> list[str]:
    """mtgen's version and, in a git checkout, its commit."""
    tags = code_version()
    return [tags["mtgen.version"], *(f"at {commit[:12]}" for name, commit in tags.items() if name.endswith("commit"))]


def _command() -> str:
    """The command of this process, as a user would type it."""
    program, *words = sys.argv
    return shell_command("mtgen" if Path(program).name == "__main__.py" else Path(program).name, *words)


def train_with_progress(
    config: Config,
    console: Console,
    say: DriverSay,
    new: bool = False,
    require_checkpoint: bool = False,
    asked: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train a run, or resume it, with a progress bar on `console`; the other arguments are those of `launch`.

    Raises:
        UserError: the run cannot start or resume, or training failed; its `status` is that of the worker's error.
    """

    def watch(folder: Path, start: int, alive: Callable[[], bool]) -> None:
        with TrainingProgress(config.train.images, config.name, console) as progress:
            progress.status("starting")
            progress.follow(folder, start, alive)

    outcome = launch(config, watch, say, new, require_checkpoint, asked)
    if outcome.status == "failed":
        raise ERROR_BY_STATUS.get(outcome.exit_status, TrainingError)(outcome.message)
    return outcome


def finished_message(config: Config, outcome: Outcome) -> str:
    """The message of a finished run: how many images it has seen, and the commands that use it."""
    reason = f" ({outcome.message})" if outcome.message else ""
    evaluate, sample = (shell_command(f"mtgen {command}", config.folder) for command in ("evaluate", "sample"))
    return f"finished: {outcome.images:,} images{reason}. Next: {evaluate}; {sample}; mtgen ui"


def launch(
    config: Config,
    watch: WatchCallback,
    say: DriverSay,
    new: bool = False,
    require_checkpoint: bool = False,
    asked: Callable[[], bool] = lambda: False,
    cpus: int | None = None,
) -> Outcome:
    """Train a run, or resume it, from this process.

    A thread runs the training, or waits for Ray's workers, while the calling thread shows progress and handles signals.

    Args:
        watch: shows progress, given the run's folder, the images seen so far and whether training still runs.
        say: prints a line.
        new: require that the run does not exist.
        require_checkpoint: require a checkpoint to resume from.
        asked: whether an earlier signal asked for a stop; this function handles signals once the run is prepared.
        cpus: CPUs of a Ray cluster on this system; default: all.

    Raises:
        UserError: the run cannot start, resume or continue.
    """
    config = _decided_here(config, say)
    log = RunLog(config.folder)
    with run_lock(config.folder):
        log.write(f"{_command()} (mtgen {' '.join(_version())}, on {socket.gethostname()})")
        try:
            outcome = _train(config, watch, log.tee(say), new, require_checkpoint, asked, cpus)
        except BaseException as error:
            log.write(f"failed: {error}" if isinstance(error, UserError) else f"ended with {type(error).__name__}")
            raise
        log.write(f"{outcome.status} at {outcome.images:,} images{f': {outcome.message}' if outcome.message else ''}")
        return outcome


def _decided_here(config: Config, say: DriverSay) -> Config:
    """The configuration with its precision resolved, where this system trains; a cluster elsewhere decides itself.

    Raises:
        ConfigError: this system does not have the device, or the device does not have the precision.
    """
    if config.workers != 0 and address_of(config) is not None:
        return config
    if config.device == "auto" and (unused := unused_gpus()):
        say(f"WARNING: training on the CPU, although this system has a GPU: {unused}; device=cpu silences this")
    return decide_here(config)[0]


def _train(
    config: Config,
    watch: WatchCallback,
    say: DriverSay,
    new: bool,
    require_checkpoint: bool,
    asked: Callable[[], bool],
    cpus: int | None,
) -> Outcome:
    """The part of `launch` inside its lock and its log."""
    before = _before(config, new, require_checkpoint, say)
    start = 0 if before is None else before.images
    if start >= config.train.images:
        return Outcome("finished", start, "it was finished before; raise train.images to continue")
    config = _with_validation(config, before, say)
    build(config, open_data(config).card)  # errors in data or tasks are found before any worker starts
    open_validation(config.data)
    (config.folder / OUTCOME_FILE).unlink(missing_ok=True)
    stop = StopRequests(config.folder, say)
    result: list[Outcome | BaseException] = []

    def work() -> None:
        try:
            result.append(run_here(config) if config.workers == 0 else run_on_ray(config, cpus=cpus, say=say))
        except BaseException as error:  # noqa: BLE001 - raised in the waiting thread
            result.append(error)

    thread = threading.Thread(target=work, name="training", daemon=True)
    try:
        if asked():
            return Outcome("stopped", start, "requested before training began")
        thread.start()
        watch(config.folder, start, thread.is_alive)
        while thread.is_alive():
            thread.join(0.2)
    finally:
        stop.end()
    (ended,) = result
    if isinstance(ended, UserError):
        raise ended
    if isinstance(ended, BaseException):
        traceback.print_exception(ended, file=sys.stderr)
        raise TrainingError(f"training ended with {type(ended).__name__}: {last_line(ended)}") from ended
    return ended
