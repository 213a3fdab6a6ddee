"""A run as its driver sees it: alone with its folder, told to stop by signals, waiting for the workers."""

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
from mtgen.checkpointing.mirror import CheckpointStore, restore
from mtgen.config import Config
from mtgen.errors import ERROR_BY_STATUS, CheckpointError, ConfigError, TrainingError, UserError, last_line
from mtgen.launchers.ray_workers import run_here, run_on_ray
from mtgen.models.model import build
from mtgen.tracking.progress_bar import TrainingProgress
from mtgen.tracking.run_log import RunLog
from mtgen.training.dataset import open_data
from mtgen.training.protocol import OUTCOME_FILE, STOP_FILE, Outcome
from mtgen.utils.shell import shell_command
from mtgen.utils.system import code_version, file_system

DriverSay = Callable[[str], None]
WatchCallback = Callable[[Path, int, Callable[[], bool]], None]


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Only one process trains a run: a lock that the system lifts when its holder dies.

    Raises:
        TrainingError: somebody else holds it, the folder cannot be written, or its file system has no locks.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise TrainingError(
            f"{folder}: cannot be written ({error.strerror}); give runs=FOLDER that is yours, or another name"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read() or "another process"
            raise TrainingError(
                f"{folder}: is being trained already, by {holder}; wait for it, or give another name"
            ) from error
        except OSError as error:
            raise TrainingError(
                f"{folder}: cannot be locked, so that only one process trains it: its file system, {file_system(folder)}, refuses "
                f"({error.strerror}); give runs=FOLDER on one with locks (NFS: without nolock)"
            ) from error
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


class StopRequests:
    """The first Ctrl-C or SIGTERM asks the run for a checkpoint and its end; the second one interrupts at once.

    SIGUSR1, with which schedulers warn, asks for the same, however often it comes.
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
            self.say(
                f"stopping at once: the workers cannot be asked for a checkpoint first, {self.file}: {error.strerror}"
            )
            raise KeyboardInterrupt from None
        self.say("stopping: writing a checkpoint first (once more Ctrl-C: at once)")

    def end(self) -> None:
        """Put the earlier handlers back."""
        for number, handler in self.earlier.items():
            signal.signal(number, handler)
        with contextlib.suppress(OSError):  # on a disk that cannot be written the next start takes it away
            self.file.unlink(missing_ok=True)


def _before(config: Config, new: bool, require_checkpoint: bool, say: DriverSay) -> int:
    """Images that the run's newest good checkpoint has seen; 0 for a new run. Where the folder has none, the mirror's is fetched.

    Raises:
        CheckpointError: `require_checkpoint`, and there is none; or the mirror does not answer.
        ConfigError: `new`, and the run exists; or checkpoint.mirror is no address.
    """
    root, mirror = config.folder / "checkpoints", config.checkpoint.mirror
    shelf = None if mirror is None else CheckpointStore(mirror, config.name)
    if new and ((config.folder / "config.yaml").exists() or checkpoint.checkpoint_folders(root)):
        raise ConfigError(
            f"name={config.name}: {config.folder} exists; choose another name, or leave --new out to resume it"
        )
    if new and shelf is not None and shelf.names():
        raise ConfigError(
            f"name={config.name}: {shelf} has a run of this name; choose another name, or leave --new out to resume it"
        )
    if (
        shelf is not None
        and not checkpoint.checkpoint_folders(root)
        and restore(shelf, root, warn=lambda text: say(f"warning: {text}")) is not None
    ):
        say(f"the newest checkpoint comes from {shelf}")
    found = checkpoint.latest(root, warn=lambda text: None)  # the workers will name damaged ones
    if found is None:
        if require_checkpoint:
            raise CheckpointError(
                f"{config.folder}: has no checkpoint to resume from; leave --require-checkpoint out to start the run"
            )
        return 0
    if found.images < config.train.images:
        say(f"going on with {config.name} from {found.images:,} images")
    return found.images


def _version() -> list[str]:
    """mtgen's version and, from a checkout, the commit."""
    tags = code_version()
    return [tags["mtgen.version"], *(f"at {commit[:12]}" for name, commit in tags.items() if name.endswith("commit"))]


def _command() -> str:
    """The command that runs here, as one would type it again."""
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
    """What a finished run says: how many images it has seen, and the commands that use it."""
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
) -> Outcome:
    """Train a run, or go on with it, from this process.

    Training goes on in a thread (it waits for Ray's workers), while this thread shows the progress and takes signals.

    Args:
        watch: shows progress from (the run's folder, images seen so far) until the function that it is given says that training has ended.
        say: prints a line.
        new: insist on a new run.
        require_checkpoint: insist on a run with a checkpoint.
        asked: whether a signal asked for the end before this function listens itself, which it does once the run is prepared.

    Raises:
        UserError: what keeps the run from going on, in one message.
    """
    log = RunLog(config.folder)
    with run_lock(config.folder):
        log.write(f"{_command()} (mtgen {' '.join(_version())}, on {socket.gethostname()})")
        try:
            outcome = _train(config, watch, log.tee(say), new, require_checkpoint, asked)
        except BaseException as error:
            log.write(f"failed: {error}" if isinstance(error, UserError) else f"ended by {type(error).__name__}")
            raise
        log.write(f"{outcome.status} at {outcome.images:,} images{f': {outcome.message}' if outcome.message else ''}")
        return outcome


def _train(
    config: Config,
    watch: WatchCallback,
    say: DriverSay,
    new: bool,
    require_checkpoint: bool,
    asked: Callable[[], bool],
) -> Outcome:
    """What `launch` does within its lock and its log."""
    start = _before(config, new, require_checkpoint, say)
    if start >= config.train.images:
        return Outcome("finished", start, "it had finished before; a larger train.images goes on")
    build(config, open_data(config).card)  # what is wrong with data or tasks is said before any worker starts
    (config.folder / OUTCOME_FILE).unlink(missing_ok=True)
    stop = StopRequests(config.folder, say)
    result: list[Outcome | BaseException] = []

    def work() -> None:
        try:
            result.append(run_here(config) if config.workers == 0 else run_on_ray(config, say=say))
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            result.append(error)

    thread = threading.Thread(target=work, name="training", daemon=True)
    try:
        if asked():
            return Outcome("stopped", start, "asked to before training began")
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
