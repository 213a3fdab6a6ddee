"""`mtgen doctor`: what of this machine mtgen needs, what is there, what that means, and the command that mends it.

Nothing heavy is imported: versions come from the packages' metadata. Whatever may hang, a dead file system or a server, has a time limit.
"""

import errno
import fcntl
import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from packaging.requirements import Requirement

from mtgen.config.paths import store_uri
from mtgen.storage.shard_cache import root as cache_root

GOOD, NOTE, WARNING, PROBLEM = "good", "note", "warning", "problem"
"""A note says what is not there and need not be; a problem keeps a run from training."""
STATUS_COLORS = {GOOD: "green", NOTE: "cyan", WARNING: "yellow", PROBLEM: "bold red"}
CHECK_TIMEOUT_SECONDS = 10.0
"""Seconds that a check may take."""
GIB = 2**30
ENOUGH_DISK_BYTES, MIN_DISK_BYTES = 5 * GIB, GIB
"""Bytes free on a disk from which nothing is said, and below which training is not begun."""
MIN_SHARED_MEMORY_BYTES = 512 * 2**20
"""Bytes of /dev/shm that Ray's object store and NCCL want at least; containers have 64 MiB unless told otherwise."""
MIN_OPEN_FILES = 4096
"""Open files that a node of Ray needs."""


@dataclass(frozen=True)
class DoctorFinding:
    """A line of the doctor's table.

    Attributes:
        check: what was looked at.
        state: GOOD, NOTE, WARNING or PROBLEM.
        found: what is there.
        means: what that means for training.
        remedy: the command or setting that mends it; "" where there is nothing to mend.
    """

    check: str
    state: str
    found: str
    means: str = ""
    remedy: str = ""


@dataclass
class SystemUnderTest:
    """What the checks look at; another one is an examination of its own.

    Attributes:
        runs: folder of all runs.
        cache: folder of what can be made again.
        environment: variables.
    """

    runs: Path = Path("runs")
    cache: Path = field(default_factory=cache_root)
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))


def _program_output(*words: str) -> str | None:
    """What a program prints; `None` where it is not there, fails or does not answer."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=CHECK_TIMEOUT_SECONDS / 2, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(*distributions: str) -> tuple[str, str] | None:
    """(name, version) of the first of the distributions that is installed."""
    for name in distributions:
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _wanted(distribution: str) -> Requirement | None:
    """The version of a distribution that mtgen's own metadata asks for."""
    asked = [Requirement(line) for line in importlib.metadata.requires("mtgen") or []] if _version("mtgen") else []
    return next((one for one in asked if one.name.lower() == distribution.lower()), None)


def _library(
    check: str, names: tuple[str, ...], missing: str, remedy: str = "make setup", state: str = PROBLEM
) -> DoctorFinding:
    found = _version(*names)
    if found is None:
        return DoctorFinding(check, state, "not installed", missing, remedy)
    wanted = _wanted(found[0])
    if wanted is not None and not wanted.specifier.contains(found[1], prereleases=True):
        return DoctorFinding(
            check, WARNING, f"{found[0]} {found[1]}", f"mtgen is written for {wanted.specifier}", remedy
        )
    return DoctorFinding(check, GOOD, f"{found[0]} {found[1]}")


def _python(machine: SystemUnderTest) -> DoctorFinding:
    return DoctorFinding("Python", GOOD, f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def torch_cuda() -> str | None:
    """The CUDA version that the installed torch is built for, such as "12.8"; `None`: for CPUs alone, or there is no torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    written = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    found = re.search(r"^cuda\b[^=]*= *['\"]([\d.]+)['\"]", written, re.MULTILINE)
    return found[1] if found else None


def _torch(machine: SystemUnderTest) -> DoctorFinding:
    found = _library("torch", ("torch",), "nothing trains without it")
    if found.state != GOOD:
        return found
    built = torch_cuda()
    return DoctorFinding("torch", GOOD, f"{found.found}, built for {f'CUDA {built}' if built else 'CPUs alone'}")


def _driver(machine: SystemUnderTest) -> DoctorFinding:
    listed = _program_output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    if not listed:
        if shutil.which("nvidia-smi"):
            remedy = "nvidia-smi; modinfo nvidia; then reboot or mend the driver"
            return DoctorFinding(
                "GPU and driver",
                WARNING,
                "nvidia-smi gives no answer",
                "the driver does not work: runs train on the CPU",
                remedy,
            )
        return DoctorFinding("GPU and driver", NOTE, "no NVIDIA driver", "runs train on the CPU (device=cpu)")
    gpus, built = listed.splitlines(), torch_cuda()
    found = f"{len(gpus)} x {gpus[0]}"
    if built is None:
        remedy = "install torch's CUDA build (pytorch.org), then make setup"
        return DoctorFinding(
            "GPU and driver", WARNING, found, "this torch is built for CPUs alone, so that the GPUs stay idle", remedy
        )
    able = re.search(r"CUDA Version: *(\d+)", _program_output("nvidia-smi") or "")
    if able and int(able[1]) < int(built.split(".")[0]):
        remedy = f"update the driver, or install a torch for CUDA {able[1]}"
        return DoctorFinding(
            "GPU and driver", PROBLEM, found, f"the driver knows CUDA {able[1]} and torch wants {built}", remedy
        )
    return DoctorFinding("GPU and driver", GOOD, found)


def _nccl(machine: SystemUnderTest) -> DoctorFinding:
    found = _version("nvidia-nccl-cu13", "nvidia-nccl-cu12")
    if found is not None:
        return DoctorFinding("NCCL", GOOD, " ".join(found))
    if torch_cuda() is None:
        return DoctorFinding(
            "NCCL", NOTE, "not installed", "workers on CPUs exchange their gradients by gloo; only GPUs need NCCL"
        )
    return DoctorFinding(
        "NCCL", NOTE, "no package of its own", "torch brings its own, or none: mtgen smoke --device cuda tries it"
    )


def _ray(machine: SystemUnderTest) -> DoctorFinding:
    found = _library("Ray", ("ray",), "only workers=0 trains, in one process", state=WARNING)
    address = machine.environment.get("RAY_ADDRESS")
    if found.state != GOOD or address is None or not address.rpartition(":")[2].isdigit():
        return found
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError as error:
        means = "mtgen train would wait for this cluster and give up"
        remedy = "unset RAY_ADDRESS, or start it: mtgen cluster head"
        return DoctorFinding(
            "Ray",
            PROBLEM,
            f"{found.found}; RAY_ADDRESS={address} does not answer ({error.strerror or error})",
            means,
            remedy,
        )
    return DoctorFinding("Ray", GOOD, f"{found.found}; the cluster at {address} answers")


def _token(machine: SystemUnderTest) -> DoctorFinding:
    if machine.environment.get("RAY_AUTH_TOKEN"):
        return DoctorFinding("Ray's token", GOOD, "in RAY_AUTH_TOKEN")
    given = machine.environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given) if given else Path.home() / ".ray" / "auth_token"
    if not path.exists():
        return DoctorFinding(
            "Ray's token",
            NOTE,
            "none",
            "a run on this machine makes its own; mtgen cluster head makes one for a cluster",
        )
    if path.stat().st_mode & 0o077:
        means = "others can read it, and with it run commands on the cluster: mtgen refuses it"
        return DoctorFinding("Ray's token", WARNING, str(path), means, f"chmod 600 {path}")
    return DoctorFinding("Ray's token", GOOD, str(path))


def _slurm(machine: SystemUnderTest) -> DoctorFinding:
    if shutil.which("sbatch") is None:
        return DoctorFinding(
            "Slurm", NOTE, "no sbatch here", "mtgen slurm still writes scripts, to be submitted where there is one"
        )
    version = _program_output("sbatch", "--version")
    up = _program_output("sinfo", "--noheader", "--format=%P %a")
    if up is None:
        remedy = "scontrol ping; ask who runs the cluster"
        return DoctorFinding(
            "Slurm", WARNING, version or "sbatch", "its controller does not answer: jobs cannot be submitted", remedy
        )
    partitions = [line.split()[0] for line in up.splitlines() if line.endswith("up")]
    return DoctorFinding("Slurm", GOOD, f"{version}, partitions: {', '.join(partitions) or 'none is up'}")


def _mlflow(machine: SystemUnderTest) -> DoctorFinding:
    means = "runs train and keep every number in metrics.jsonl; the next run with MLflow sends them"
    found = _library("MLflow", ("mlflow",), means, state=WARNING)
    uri = store_uri(machine.runs, machine.environment.get("MLFLOW_TRACKING_URI"))
    if found.state != GOOD or urlsplit(uri).scheme not in ("http", "https"):
        return found if found.state != GOOD else DoctorFinding("MLflow", GOOD, f"{found.found}; runs are kept in {uri}")
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=CHECK_TIMEOUT_SECONDS / 2).close()  # noqa: S310 - http or https, as checked
    except OSError as error:
        remedy = "start the server, or unset MLFLOW_TRACKING_URI"
        return DoctorFinding(
            "MLflow", WARNING, f"{found.found}; {uri} does not answer ({error})", means.split(";")[0], remedy
        )
    return DoctorFinding("MLflow", GOOD, f"{found.found}; {uri} answers")


def _nearest(folder: Path) -> Path:
    """The folder, or the first one above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _disk(check: str, folder: Path, setting: str) -> DoctorFinding:
    there = _nearest(folder)
    free, where = shutil.disk_usage(there).free, f"{folder.absolute()}"
    found = f"{free / GIB:,.1f} GiB free in {where}"
    if not os.access(there, os.W_OK):
        return DoctorFinding(
            check, PROBLEM, f"{where} cannot be written", "a run could keep nothing", f"chmod u+w {there}, or {setting}"
        )
    if free < ENOUGH_DISK_BYTES:
        state = WARNING if free >= MIN_DISK_BYTES else PROBLEM
        return DoctorFinding(
            check,
            state,
            found,
            "checkpoints or shards will not fit; a run that cannot save ends",
            f"make room, or {setting}",
        )
    return DoctorFinding(check, GOOD, found)


def _locks(machine: SystemUnderTest) -> DoctorFinding:
    """Two locks on one file: the second has to be refused, or two processes could train one run."""
    with (
        tempfile.NamedTemporaryFile(dir=_nearest(machine.runs), prefix=".mtgen-doctor-") as first,
        open(first.name, "rb") as second,
    ):
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                return DoctorFinding("file locks", GOOD, f"kept on {_nearest(machine.runs)}")
            means = "no run can be locked, so none is trained here"
            return DoctorFinding(
                "file locks",
                PROBLEM,
                f"refused ({error.strerror})",
                means,
                "runs=FOLDER on a file system with locks (NFS: nolock off)",
            )
    means = "two processes could train one run and spoil it"
    return DoctorFinding(
        "file locks", PROBLEM, f"not kept on {_nearest(machine.runs)}", means, "runs=FOLDER on a file system with locks"
    )


def _shared_memory(machine: SystemUnderTest) -> DoctorFinding:
    there = Path("/dev/shm")  # noqa: S108 - it is looked at, not written to
    if not there.is_dir():
        return DoctorFinding(
            "shared memory",
            WARNING,
            "no /dev/shm",
            "Ray keeps its objects on disk instead, slowly",
            "mount -t tmpfs tmpfs /dev/shm",
        )
    usage = shutil.disk_usage(there)
    found = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free in /dev/shm"
    if usage.free < MIN_SHARED_MEMORY_BYTES:
        means = "Ray's object store and NCCL do not fit: workers die with 'bus error', or are slow"
        return DoctorFinding(
            "shared memory", WARNING, found, means, "docker run --shm-size=8g, or remove old files of /dev/shm"
        )
    return DoctorFinding("shared memory", GOOD, found)


def _ports(machine: SystemUnderTest) -> DoctorFinding:
    """What mtgen's commands listen on by default, on loopback."""
    taken = []
    for port, what in ((5000, "mtgen ui"), (6379, "mtgen cluster head"), (8265, "the dashboard of mtgen cluster head")):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                taken.append(f"{port} ({what})")
    if taken:
        means = "mtgen ui takes the next one; for a cluster's head name another"
        return DoctorFinding("ports", NOTE, f"in use: {', '.join(taken)}", means, "--port, --dashboard-port")
    return DoctorFinding("ports", GOOD, "5000, 6379 and 8265 are free")


def _open_files(machine: SystemUnderTest) -> DoctorFinding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < MIN_OPEN_FILES:
        means = "a Ray cluster on many CPUs, or many shards, end with 'too many open files'"
        return DoctorFinding(
            "open files", WARNING, f"{soft:,} allowed", means, f"ulimit -n {min(65536, hard) if hard > 0 else 65536}"
        )
    return DoctorFinding("open files", GOOD, f"{'unlimited' if soft < 0 else f'{soft:,}'} allowed")


def _threads(machine: SystemUnderTest) -> DoctorFinding:
    cpus, given = len(os.sched_getaffinity(0)), machine.environment.get("OMP_NUM_THREADS")
    found = f"{cpus} CPUs for this process{f', OMP_NUM_THREADS={given}' if given else ''}"
    if given and given.isdigit() and int(given) > cpus:
        return DoctorFinding(
            "threads", WARNING, found, "threads wait for each other: ten times slower is usual", "unset OMP_NUM_THREADS"
        )
    busy = os.getloadavg()[0]
    if busy > 1.5 * cpus:
        return DoctorFinding(
            "threads",
            NOTE,
            f"{found}; {busy:.0f} others want them now",
            "training shares them, and timings mean little",
        )
    return DoctorFinding("threads", GOOD, found)


def _memory(machine: SystemUnderTest) -> DoctorFinding:
    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    if memory.available < 2 * GIB:
        means = "a worker takes about 1.5 GiB and Ray half of one: the system may kill them"
        return DoctorFinding("memory", WARNING, found, means, "end something else, or train in one process: workers=0")
    return DoctorFinding("memory", GOOD, found)


CHECKS: dict[str, Callable[[SystemUnderTest], DoctorFinding]] = {
    "Python": _python,
    "torch": _torch,
    "GPU and driver": _driver,
    "NCCL": _nccl,
    "DeepSpeed": lambda machine: _library("DeepSpeed", ("deepspeed",), "nothing trains without it"),
    "DALI": lambda machine: _library(
        "DALI",
        ("nvidia-dali-cuda120", "nvidia-dali-cuda130"),
        "no image is decoded, so nothing trains (using a run works)",
        "pip install -e '.[cuda12]' (or cuda13; both run without a GPU)",
    ),
    "Ray": _ray,
    "Ray's token": _token,
    "Slurm": _slurm,
    "MLflow": _mlflow,
    "disk of runs": lambda machine: _disk("disk of runs", machine.runs, "runs=FOLDER on another disk"),
    "disk of the cache": lambda machine: _disk(
        "disk of the cache", machine.cache, "MTGEN_CACHE=FOLDER on another disk"
    ),
    "file locks": _locks,
    "memory": _memory,
    "shared memory": _shared_memory,
    "ports": _ports,
    "open files": _open_files,
    "threads": _threads,
}


def _check_with_timeout(limit: float, check: str, look: Callable[[], DoctorFinding]) -> DoctorFinding:
    """A check's finding; one that does not come in time is a finding too, and its thread is left behind."""
    result: list[DoctorFinding] = []

    def work() -> None:
        try:
            result.append(look())
        except Exception as error:  # noqa: BLE001 - whatever a check meets is a line of the table, and the next one is made
            result.append(
                DoctorFinding(
                    check, PROBLEM, f"cannot be looked at: {type(error).__name__}: {error}", remedy="mend what it says"
                )
            )

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(limit)
    if not result:
        means = "a file system, driver or server hangs; training would too"
        return DoctorFinding(check, PROBLEM, f"no answer in {limit:g} s", means, "mount; nvidia-smi; dmesg | tail")
    return result[0]


def run_checks(
    machine: SystemUnderTest,
    checks: dict[str, Callable[[SystemUnderTest], DoctorFinding]] | None = None,
    limit: float = CHECK_TIMEOUT_SECONDS,
) -> list[DoctorFinding]:
    """Every check's finding, in order; none of them can hang or end the others.

    Args:
        limit: seconds for each.
    """
    chosen = CHECKS if checks is None else checks
    return [_check_with_timeout(limit, name, lambda look=look: look(machine)) for name, look in chosen.items()]  # type: ignore[misc]


def rows(found: list[DoctorFinding]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(finding) for finding in found]
