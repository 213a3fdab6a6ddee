"""Faults, each injected for real into a run that trains on a `Testbed`, and what takes each away again."""

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
from chaos_testbed import SAVE, Testbed

Strike = Callable[[Testbed, random.Random], None]
Mend = Callable[[Testbed], None]
SHARDS = "*.tar"


def nothing(bed: Testbed) -> None:
    """There is nothing to be mended."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        strike: makes it happen.
        ends: exit statuses of the driver of which one shows that the run has ended by it; none for what does not last.
        mend: takes it away then; calling it twice does no harm.
        interrupts: whether the workers have to begin again; else training has to go on beside it.
    """

    name: str
    strike: Strike
    ends: tuple[int, ...] = ()
    mend: Mend = nothing
    interrupts: bool = True


def _kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def one_worker(bed: Testbed, rng: random.Random) -> None:
    _kill(rng.choice(bed.beats()).pid)


def all_workers(bed: Testbed, rng: random.Random) -> None:
    for beat in bed.beats():
        _kill(beat.pid)


def stopped(bed: Testbed, rng: random.Random) -> None:
    _kill(rng.choice(bed.beats()).pid, signal.SIGSTOP)


def without_memory(bed: Testbed, rng: random.Random) -> None:
    """From now on the kernel refuses a worker every page more, so that it raises."""
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(rng.choice(bed.beats()).pid).rlimit(psutil.RLIMIT_AS, (2**20, 2**20))


def out_of_memory(bed: Testbed, rng: random.Random) -> None:
    """A worker's control group may hold no page more, so that the kernel kills it."""
    root = Path("/sys/fs/cgroup")
    there, limit = (
        (root, "memory.max") if (root / "cgroup.controllers").exists() else (root / "memory", "memory.limit_in_bytes")
    )
    group = there / f"mtgen{os.getpid()}"
    group.mkdir(exist_ok=True)
    victim = psutil.Process(rng.choice(bed.beats()).pid)
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        (group / "cgroup.procs").write_text(str(victim.pid), encoding="utf-8")
        (group / limit).write_text("4096", encoding="utf-8")
        victim.wait(60)
    group.rmdir()


def network_cut(bed: Testbed, rng: random.Random) -> None:
    """The second node hears and says nothing for 30 seconds."""
    bed.network.cut()
    time.sleep(30)
    bed.network.mend()


def driver(bed: Testbed, rng: random.Random) -> None:
    assert bed.driver is not None
    bed.driver.signal(signal.SIGKILL)
    bed.driver.wait()


def driver_twice(bed: Testbed, rng: random.Random) -> None:
    """Killed, started again, and killed once more before or while its workers start."""
    driver(bed, rng)
    bed.keep_going()
    time.sleep(rng.uniform(1, 20))
    driver(bed, rng)


def asked(bed: Testbed, rng: random.Random) -> None:
    assert bed.driver is not None
    bed.driver.signal(signal.SIGTERM)


def preempted(bed: Testbed, rng: random.Random) -> None:
    """SIGTERM, and ten seconds later SIGKILL to what is left."""
    asked(bed, rng)
    deadline = time.monotonic() + 10
    while bed.driver is not None and bed.driver.status is None and time.monotonic() < deadline:
        time.sleep(0.1)
    driver(bed, rng)


def _of(node: str) -> Strike:
    def strike(bed: Testbed, rng: random.Random) -> None:
        program, process = {"head": ("gcs_server", bed.head), "second": ("raylet", bed.second)}[node]
        for member in process.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                if member.name() == program:
                    member.kill()

    return strike


def full(bed: Testbed, rng: random.Random) -> None:
    """All of the disk is taken, or all but a few KB, less than a checkpoint needs."""
    size = bed.disk.stat().st_blksize
    free = os.statvfs(bed.disk).f_bavail * size
    with (bed.disk / "ballast").open("wb") as file, contextlib.suppress(OSError):
        file.write(bytes(max(free - rng.randrange(12) * size, 0)))


def emptied(bed: Testbed) -> None:
    (bed.disk / "ballast").unlink(missing_ok=True)


def read_only(bed: Testbed, rng: random.Random) -> None:
    for options in (["--bind", str(bed.run)], ["-o", "remount,bind,ro"]):
        subprocess.run(["mount", *options, str(bed.run)], check=True)


def writable(bed: Testbed) -> None:
    if subprocess.run(["mountpoint", "-q", str(bed.run)], check=False).returncode == 0:
        subprocess.run(["umount", "-l", str(bed.run)], check=True)


def _newest_file(bed: Testbed, rng: random.Random) -> Path:
    bed.until(lambda: len(bed.checkpoints()) > 1, bed.keep_going, "there are two checkpoints")
    driver(bed, rng)
    time.sleep(3)  # until its workers have ended too
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
    """Driver and checkpoints: what is left lies in the mirror."""
    _newest_file(bed, rng)
    subprocess.run(["rm", "-rf", str(bed.run / "checkpoints")], check=True)


def damaged_data(bed: Testbed, rng: random.Random) -> None:
    """What the shards hold is zeros for a while; their sizes and times stay."""
    for shard in sorted((bed.place / "data").glob(SHARDS)):
        kept = shard.with_suffix(".kept")
        content, status = shard.read_bytes(), shard.stat()
        kept.write_bytes(content)
        with shard.open("r+b") as file:  # in place: whoever has it open reads this
            file.write(bytes(len(content)))
        os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))


def mended_data(bed: Testbed) -> None:
    for kept in sorted((bed.place / "data").glob("*.kept")):
        shard = kept.with_suffix(".tar")
        status = shard.stat()
        with shard.open("r+b") as file:
            file.write(kept.read_bytes())
        os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
        kept.unlink()


def _beside(bed: Testbed, images: int) -> None:
    """Training goes on for so many images."""
    begin = bed.position
    bed.until(lambda: bed.position >= begin + images or bed.ended, bed.keep_going, "training goes on beside the fault")


def store_killed(bed: Testbed, rng: random.Random) -> None:
    for process in bed.store.family():
        process.kill()
    bed.store.signal(signal.SIGKILL)
    bed.store.wait()
    _beside(bed, SAVE)
    time.sleep(rng.uniform(0, 5))
    bed.store.start()


def mirror_fails(bed: Testbed, rng: random.Random) -> None:
    bed.mirror.failing, before = True, bed.mirror.refused
    bed.until(lambda: bed.mirror.refused > before or bed.ended, bed.keep_going, "a checkpoint is refused by the mirror")
    _beside(bed, SAVE)
    bed.mirror.failing = False


def second_driver(bed: Testbed, rng: random.Random) -> None:
    """Somebody starts the same run once more: refused, be it because an earlier fault still has the folder full or read-only."""
    command = type(bed.head)(
        bed.place / "twice.log", bed.environment, "-m", "mtgen.cli", "train", str(bed.place / f"{bed.run.name}.yaml")
    )
    if command.wait() == 0 or not any(
        words in command.said for words in ("is already being trained", "cannot be written")
    ):
        raise RuntimeError(f"a second driver of the same run was not refused: {command.said}")


KINDS = (
    Kind("worker killed", one_worker),
    Kind("all workers killed", all_workers),
    Kind("worker stopped (SIGSTOP)", stopped),
    Kind("worker raises: no memory", without_memory),
    Kind("worker killed by the kernel: out of memory", out_of_memory),
    Kind("driver killed", driver),
    Kind("driver killed, again while it starts", driver_twice),
    Kind("SIGTERM to the driver", asked),
    Kind("preempted, 10 s of grace", preempted),
    Kind("second node killed", _of("second")),
    Kind("head killed", _of("head")),
    Kind("network between the nodes cut for 30 s", network_cut),
    Kind("disk full in a checkpoint", full, (1, 4, 5), emptied),
    Kind("run folder read-only", read_only, (1, 4, 5), writable),
    Kind("killed, byte of newest checkpoint flipped", flipped),
    Kind("killed, newest checkpoint cut short", cut_short),
    Kind("killed, file of newest checkpoint missing", missing),
    Kind("killed, all checkpoints here lost", all_lost),
    Kind("shards damaged", damaged_data, (3,), mended_data),
    Kind("MLflow's server killed", store_killed, interrupts=False),
    Kind("mirror answers 503", mirror_fails, interrupts=False),
    Kind("second driver started", second_driver, interrupts=False),
)
