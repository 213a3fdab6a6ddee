"""Faults that are injected into a run on a `Testbed`, and their repairs."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from chaos_testbed import SAVE, Process, Testbed

Inject = Callable[[Testbed, random.Random], None]
Repair = Callable[[Testbed], None]
SHARDS = "*.tar"
SECOND_DRIVER_ERRORS = ("is already being trained", "cannot be written")
"""Words of which the error message of a second driver has one."""


def nothing(bed: Testbed) -> None:
    """Repair of a fault that does not last."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        inject: makes it happen.
        exit_statuses: for a lasting fault, the driver's possible exit statuses when the fault has ended the run.
        repair: undoes a lasting fault then; may be called twice.
        interrupts: whether the workers must restart; otherwise training must continue during the fault.
    """

    name: str
    inject: Inject
    exit_statuses: tuple[int, ...] = ()
    repair: Repair = nothing
    interrupts: bool = True


def _kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def one_worker(bed: Testbed, rng: random.Random) -> None:
    _kill(rng.choice(bed.heartbeats()).pid)


def all_workers(bed: Testbed, rng: random.Random) -> None:
    for heartbeat in bed.heartbeats():
        _kill(heartbeat.pid)


def stopped(bed: Testbed, rng: random.Random) -> None:
    _kill(rng.choice(bed.heartbeats()).pid, signal.SIGSTOP)


def without_memory(bed: Testbed, rng: random.Random) -> None:
    """The kernel refuses a worker any further page from now on, so that it raises an error."""
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(rng.choice(bed.heartbeats()).pid).rlimit(psutil.RLIMIT_AS, (2**20, 2**20))


def out_of_memory(bed: Testbed, rng: random.Random) -> None:
    """A worker's control group may not get any further page, so that the kernel kills it."""
    root, limit = Path("/sys/fs/cgroup"), "memory.max"
    if not (root / "cgroup.controllers").exists():  # cgroup version 1
        root, limit = root / "memory", "memory.limit_in_bytes"
    group = root / f"mtgen{os.getpid()}"
    group.mkdir(exist_ok=True)
    victim = psutil.Process(rng.choice(bed.heartbeats()).pid)
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        (group / "cgroup.procs").write_text(str(victim.pid), encoding="utf-8")
        (group / limit).write_text("4096", encoding="utf-8")
        victim.wait(60)
    group.rmdir()


def network_cut(bed: Testbed, rng: random.Random) -> None:
    """The second node is unreachable for 30 seconds."""
    bed.network.cut()
    time.sleep(30)
    bed.network.repair()


def driver(bed: Testbed, rng: random.Random) -> None:
    assert bed.driver is not None
    bed.driver.signal(signal.SIGKILL)
    bed.driver.wait()


def driver_twice(bed: Testbed, rng: random.Random) -> None:
    """The driver is killed, restarted, and killed again before or while its workers start."""
    driver(bed, rng)
    bed.keep_going()
    time.sleep(rng.uniform(1, 20))
    driver(bed, rng)


def terminated(bed: Testbed, rng: random.Random) -> None:
    assert bed.driver is not None
    bed.driver.signal(signal.SIGTERM)


def preempted(bed: Testbed, rng: random.Random) -> None:
    """SIGTERM to the driver, and SIGKILL ten seconds later if it is still running."""
    terminated(bed, rng)
    deadline = time.monotonic() + 10
    while bed.driver is not None and bed.driver.status is None and time.monotonic() < deadline:
        time.sleep(0.1)
    driver(bed, rng)


def _node_killed(node: str) -> Inject:
    def inject(bed: Testbed, rng: random.Random) -> None:
        program, process = {"head": ("gcs_server", bed.head), "second": ("raylet", bed.second)}[node]
        for member in process.descendants():
            with contextlib.suppress(psutil.NoSuchProcess):
                if member.name() == program:
                    member.kill()

    return inject


def disk_full(bed: Testbed, rng: random.Random) -> None:
    """The disk is full, or has only a few KB left, less than a checkpoint needs."""
    size = bed.disk.stat().st_blksize
    free = os.statvfs(bed.disk).f_bavail * size
    with (bed.disk / "ballast").open("wb") as file, contextlib.suppress(OSError):
        file.write(bytes(max(free - rng.randrange(12) * size, 0)))


def disk_emptied(bed: Testbed) -> None:
    (bed.disk / "ballast").unlink(missing_ok=True)


def read_only(bed: Testbed, rng: random.Random) -> None:
    for options in (["--bind", str(bed.run)], ["-o", "remount,bind,ro"]):
        subprocess.run(["mount", *options, str(bed.run)], check=True)


def writable(bed: Testbed) -> None:
    if subprocess.run(["mountpoint", "-q", str(bed.run)], check=False).returncode == 0:
        subprocess.run(["umount", "-l", str(bed.run)], check=True)


def _newest_file(bed: Testbed, rng: random.Random) -> Path:
    bed.until(lambda: len(bed.checkpoints()) > 1, bed.keep_going, "two checkpoints exist")
    driver(bed, rng)
    time.sleep(3)  # until its workers have exited too
    return rng.choice(sorted(bed.checkpoints()[-1].iterdir()))


def flipped(bed: Testbed, rng: random.Random) -> None:
    path = _newest_file(bed, rng)
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut_short(bed: Testbed, rng: random.Random) -> None:
    path = _newest_file(bed, rng)
    os.truncate(path, rng.randrange(path.stat().st_size))


def missing(bed: Testbed, rng: random.Random) -> None:
    _newest_file(bed, rng).unlink()


def all_lost(bed: Testbed, rng: random.Random) -> None:
    """The driver is killed and all local checkpoints are deleted; the mirror still has them."""
    _newest_file(bed, rng)
    subprocess.run(["rm", "-rf", str(bed.run / "checkpoints")], check=True)


def damaged_data(bed: Testbed, rng: random.Random) -> None:
    """The shards contain zeros for a while; their sizes and times stay."""
    for shard in sorted((bed.folder / "data").glob(SHARDS)):
        kept = shard.with_suffix(".kept")
        content, status = shard.read_bytes(), shard.stat()
        kept.write_bytes(content)
        with shard.open("r+b") as file:  # in place, so that processes that have it open see the zeros
            file.write(bytes(len(content)))
        os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))


def repaired_data(bed: Testbed) -> None:
    for kept in sorted((bed.folder / "data").glob("*.kept")):
        shard = kept.with_suffix(".tar")
        status = shard.stat()
        with shard.open("r+b") as file:
            file.write(kept.read_bytes())
        os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
        kept.unlink()


def _train_on(bed: Testbed, images: int) -> None:
    """Wait until training has continued for this many images."""
    begin = bed.position
    bed.until(lambda: bed.position >= begin + images or bed.ended, bed.keep_going, "training continues with the fault")


def store_killed(bed: Testbed, rng: random.Random) -> None:
    for process in bed.store.descendants():
        process.kill()
    bed.store.signal(signal.SIGKILL)
    bed.store.wait()
    _train_on(bed, SAVE)
    time.sleep(rng.uniform(0, 5))
    bed.store.start()


def mirror_fails(bed: Testbed, rng: random.Random) -> None:
    bed.mirror.failing, before = True, bed.mirror.refused
    bed.until(lambda: bed.mirror.refused > before or bed.ended, bed.keep_going, "the mirror refuses a checkpoint")
    _train_on(bed, SAVE)
    bed.mirror.failing = False


def second_driver(bed: Testbed, rng: random.Random) -> None:
    """A second driver must be refused, also while an earlier fault keeps the run's folder full or read-only."""
    file = str(bed.folder / f"{bed.run.name}.yaml")
    command = Process(bed.folder / "twice.log", bed.environment, "-m", "mtgen.cli", "train", file)
    status, output = command.wait(), command.output
    if status == 0 or not any(words in output for words in SECOND_DRIVER_ERRORS):
        raise RuntimeError(f"a second driver of the same run was not refused: {output}")


KINDS = (
    Kind("worker killed", one_worker),
    Kind("all workers killed", all_workers),
    Kind("worker stopped (SIGSTOP)", stopped),
    Kind("worker raises: no memory", without_memory),
    Kind("worker killed by the kernel: out of memory", out_of_memory),
    Kind("driver killed", driver),
    Kind("driver killed, again while it starts", driver_twice),
    Kind("SIGTERM to the driver", terminated),
    Kind("preempted, 10 s of grace", preempted),
    Kind("second node killed", _node_killed("second")),
    Kind("head killed", _node_killed("head")),
    Kind("network between the nodes cut for 30 s", network_cut),
    Kind("disk full in a checkpoint", disk_full, (1, 4, 5), disk_emptied),
    Kind("run folder read-only", read_only, (1, 4, 5), writable),
    Kind("killed, byte of newest checkpoint flipped", flipped),
    Kind("killed, newest checkpoint cut short", cut_short),
    Kind("killed, file of newest checkpoint missing", missing),
    Kind("killed, all checkpoints here lost", all_lost),
    Kind("shards damaged", damaged_data, (3,), repaired_data),
    Kind("MLflow's server killed", store_killed, interrupts=False),
    Kind("mirror answers 503", mirror_fails, interrupts=False),
    Kind("second driver started", second_driver, interrupts=False),
)
