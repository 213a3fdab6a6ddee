"""`mtgen doctor`: checks this system's installation and names a fix for each problem.

It imports no large library: versions come from package metadata. Checks that may hang, such as on a dead file system or
server, have a time limit.
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

from mtgen.storage.shard_cache import root as cache_root
from mtgen.storage.tracking_store import store_uri

GOOD, NOTE, WARNING, PROBLEM = "good", "note", "warning", "problem"
"""A note names something optional that is missing; a problem prevents training."""
STATUS_COLORS = {GOOD: "green", NOTE: "cyan", WARNING: "yellow", PROBLEM: "bold red"}
CHECK_TIMEOUT_SECONDS = 10.0
"""Time limit of a check, in seconds."""
GIB = 2**30
ENOUGH_DISK_BYTES, MIN_DISK_BYTES = 5 * GIB, GIB
"""Free bytes of a disk: below the first a warning, below the second a problem."""
MIN_SHARED_MEMORY_BYTES = 512 * 2**20
"""Bytes of /dev/shm that Ray's object store and NCCL need; containers have 64 MiB by default."""
MIN_OPEN_FILES = 4096
"""Open files that a Ray node needs."""


@dataclass(frozen=True)
class DoctorFinding:
    """The result of a check: a row of the doctor's table.

    Attributes:
        check: name of the check.
        state: GOOD, NOTE, WARNING or PROBLEM.
        found: what was found.
        means: consequence for training.
        remedy: command or setting that fixes it; "" if there is nothing to fix.
    """

    check: str
    state: str
    found: str
    means: str = ""
    remedy: str = ""


@dataclass
class SystemUnderTest:
    """What the checks examine.

    Attributes:
        runs: folder of all runs.
        cache: folder of the cache.
        environment: environment variables.
        config: what is to be trained; `None`: nothing in particular.
    """

    runs: Path = Path("runs")
    cache: Path = field(default_factory=cache_root)
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    config: Any = None


def _program_output(*words: str) -> str | None:
    """Output of a program; `None` if it is missing, fails or does not answer in time."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=CHECK_TIMEOUT_SECONDS / 2, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(*distributions: str) -> tuple[str, str] | None:
    """(name, version) of the first distribution that is installed."""
    for name in distributions:
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _wanted(distribution: str) -> Requirement | None:
    """The requirement for a distribution in mtgen's metadata."""
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
        return DoctorFinding(check, WARNING, f"{found[0]} {found[1]}", f"mtgen requires {wanted.specifier}", remedy)
    return DoctorFinding(check, GOOD, f"{found[0]} {found[1]}")


DALI_WHEELS = ("nvidia-dali-cuda120", "nvidia-dali-cuda130")
"""The distributions of DALI for CUDA 12 and 13, of which one at a time can be installed."""


def _python(system: SystemUnderTest) -> DoctorFinding:
    return DoctorFinding("Python", GOOD, f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def torch_cuda() -> str | None:
    """CUDA version of the installed torch, such as "12.8"; `None`: it is built for CPUs only, or missing."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    written = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    found = re.search(r"^cuda\b[^=]*= *['\"]([\d.]+)['\"]", written, re.MULTILINE)
    return found[1] if found else None


def _torch(system: SystemUnderTest) -> DoctorFinding:
    found = _library("torch", ("torch",), "training is not possible")
    if found.state != GOOD:
        return found
    built = torch_cuda()
    return DoctorFinding("torch", GOOD, f"{found.found}, built for {f'CUDA {built}' if built else 'CPUs only'}")


def _driver(system: SystemUnderTest) -> DoctorFinding:
    listed = _program_output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    if not listed:
        if shutil.which("nvidia-smi"):
            remedy = "run nvidia-smi and modinfo nvidia; reboot, or reinstall the driver"
            return DoctorFinding(
                "GPU and driver",
                WARNING,
                "nvidia-smi does not answer",
                "the driver does not work: runs train on the CPU",
                remedy,
            )
        return DoctorFinding("GPU and driver", NOTE, "no NVIDIA driver", "runs train on the CPU (device=cpu)")
    gpus, built = listed.splitlines(), torch_cuda()
    found = f"{len(gpus)} x {gpus[0]}"
    able = re.search(r"CUDA Version: *(\d+)", _program_output("nvidia-smi") or "")
    remedy = f"rm -r .venv && make setup{f' CUDA={able[1]}' if able else ''}"
    if built is None:
        return DoctorFinding(
            "GPU and driver", WARNING, found, "torch is built for CPUs only, so the GPUs are not used", remedy
        )
    if able and int(able[1]) < int(built.split(".")[0]):
        return DoctorFinding(
            "GPU and driver", PROBLEM, found, f"the driver supports CUDA {able[1]}, but torch needs {built}", remedy
        )
    return DoctorFinding("GPU and driver", GOOD, found)


def _dali(system: SystemUnderTest) -> DoctorFinding:
    if all(_version(name) for name in DALI_WHEELS):
        means = "they share files, of which those of the last one installed are left; uninstalling either breaks both"
        remedy = f"pip uninstall -y {' '.join(DALI_WHEELS)}, then make setup"
        return DoctorFinding("DALI", PROBLEM, " and ".join(DALI_WHEELS), means, remedy)
    return _library(
        "DALI",
        DALI_WHEELS,
        "images cannot be decoded, so training is not possible (inference is)",
        "pip install -e '.[cuda12]' (or cuda13; both run without a GPU)",
    )


def _nccl(system: SystemUnderTest) -> DoctorFinding:
    found = _version("nvidia-nccl-cu13", "nvidia-nccl-cu12")
    if found is not None:
        return DoctorFinding("NCCL", GOOD, " ".join(found))
    if torch_cuda() is None:
        return DoctorFinding(
            "NCCL", NOTE, "not installed", "only GPUs need it: workers on CPUs reduce gradients with gloo"
        )
    return DoctorFinding(
        "NCCL", NOTE, "not a separate package", "torch may contain it: mtgen smoke --device cuda tests it"
    )


def _ray(system: SystemUnderTest) -> DoctorFinding:
    found = _library("Ray", ("ray",), "training is limited to one process (workers=0)", state=WARNING)
    address = system.environment.get("RAY_ADDRESS")
    if found.state != GOOD or address is None or not address.rpartition(":")[2].isdigit():
        return found
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError as error:
        means = "mtgen train would wait for this cluster and fail"
        remedy = "unset RAY_ADDRESS, or start the cluster: mtgen cluster head"
        return DoctorFinding(
            "Ray",
            PROBLEM,
            f"{found.found}; RAY_ADDRESS={address} does not answer ({error.strerror or error})",
            means,
            remedy,
        )
    return DoctorFinding("Ray", GOOD, f"{found.found}; the cluster at {address} answers")


def _token(system: SystemUnderTest) -> DoctorFinding:
    if system.environment.get("RAY_AUTH_TOKEN"):
        return DoctorFinding("Ray's token", GOOD, "in RAY_AUTH_TOKEN")
    given = system.environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given) if given else Path.home() / ".ray" / "auth_token"
    if not path.exists():
        return DoctorFinding(
            "Ray's token",
            NOTE,
            "none",
            "runs on this system create their own; mtgen cluster head creates one for a cluster",
        )
    if path.stat().st_mode & 0o077:
        means = "other users can read it, and with it run commands on the cluster: mtgen rejects it"
        return DoctorFinding("Ray's token", WARNING, str(path), means, f"chmod 600 {path}")
    return DoctorFinding("Ray's token", GOOD, str(path))


def _slurm(system: SystemUnderTest) -> DoctorFinding:
    if shutil.which("sbatch") is None:
        return DoctorFinding(
            "Slurm", NOTE, "no sbatch", "mtgen slurm writes scripts that can be submitted on another system"
        )
    version = _program_output("sbatch", "--version")
    up = _program_output("sinfo", "--noheader", "--format=%P %a")
    if up is None:
        remedy = "run scontrol ping; ask the administrators of the cluster"
        return DoctorFinding(
            "Slurm", WARNING, version or "sbatch", "its controller does not answer, so jobs cannot be submitted", remedy
        )
    partitions = [line.split()[0] for line in up.splitlines() if line.endswith("up")]
    return DoctorFinding("Slurm", GOOD, f"{version}, partitions: {', '.join(partitions) or 'none are up'}")


def _mlflow(system: SystemUnderTest) -> DoctorFinding:
    means = "training works and keeps all metrics in metrics.jsonl; the next run with MLflow sends them"
    found = _library("MLflow", ("mlflow",), means, state=WARNING)
    uri = store_uri(system.runs, system.environment.get("MLFLOW_TRACKING_URI"))
    if found.state != GOOD or urlsplit(uri).scheme not in ("http", "https"):
        return (
            found if found.state != GOOD else DoctorFinding("MLflow", GOOD, f"{found.found}; runs are stored in {uri}")
        )
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=CHECK_TIMEOUT_SECONDS / 2).close()  # noqa: S310 - http or https, as checked
    except OSError as error:
        remedy = "start the server, or unset MLFLOW_TRACKING_URI"
        return DoctorFinding(
            "MLflow", WARNING, f"{found.found}; {uri} does not answer ({error})", means.split(";")[0], remedy
        )
    return DoctorFinding("MLflow", GOOD, f"{found.found}; {uri} answers")


def _nearest(folder: Path) -> Path:
    """The folder itself, or its nearest parent that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _disk(check: str, folder: Path, setting: str) -> DoctorFinding:
    existing = _nearest(folder)
    free, where = shutil.disk_usage(existing).free, f"{folder.absolute()}"
    found = f"{free / GIB:,.1f} GiB free in {where}"
    if not os.access(existing, os.W_OK):
        return DoctorFinding(
            check, PROBLEM, f"{where} cannot be written", "nothing can be saved", f"chmod u+w {existing}, or {setting}"
        )
    if free < ENOUGH_DISK_BYTES:
        state = WARNING if free >= MIN_DISK_BYTES else PROBLEM
        return DoctorFinding(
            check,
            state,
            found,
            "checkpoints or shards may not fit; a run that cannot save stops",
            f"free disk space, or {setting}",
        )
    return DoctorFinding(check, GOOD, found)


def _locks(system: SystemUnderTest) -> DoctorFinding:
    """Lock a file twice: the second lock must fail, or two processes could train one run."""
    with (
        tempfile.NamedTemporaryFile(dir=_nearest(system.runs), prefix=".mtgen-doctor-") as first,
        open(first.name, "rb") as second,
    ):
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                return DoctorFinding("file locks", GOOD, f"work on {_nearest(system.runs)}")
            means = "runs cannot be locked, so training does not start"
            return DoctorFinding(
                "file locks",
                PROBLEM,
                f"fail ({error.strerror})",
                means,
                "runs=FOLDER on a file system with locks (NFS: without nolock)",
            )
    means = "two processes could train one run and corrupt it"
    return DoctorFinding(
        "file locks",
        PROBLEM,
        f"do not work on {_nearest(system.runs)}",
        means,
        "runs=FOLDER on a file system with locks",
    )


def _shared_memory(system: SystemUnderTest) -> DoctorFinding:
    folder = Path("/dev/shm")  # noqa: S108 - checked, not written to
    if not folder.is_dir():
        return DoctorFinding(
            "shared memory",
            WARNING,
            "no /dev/shm",
            "Ray stores its objects on disk, which is slow",
            "mount -t tmpfs tmpfs /dev/shm",
        )
    usage = shutil.disk_usage(folder)
    found = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free in /dev/shm"
    if usage.free < MIN_SHARED_MEMORY_BYTES:
        means = "too little for Ray's object store and NCCL: workers fail with 'bus error', or are slow"
        return DoctorFinding(
            "shared memory", WARNING, found, means, "docker run --shm-size=8g, or remove old files in /dev/shm"
        )
    return DoctorFinding("shared memory", GOOD, found)


def _ports(system: SystemUnderTest) -> DoctorFinding:
    """Default ports of mtgen's commands, on loopback."""
    taken = []
    for port, what in ((5000, "mtgen ui"), (6379, "mtgen cluster head"), (8265, "the dashboard of mtgen cluster head")):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                taken.append(f"{port} ({what})")
    if taken:
        means = "mtgen ui uses the next free port; for mtgen cluster head, choose other ports"
        return DoctorFinding("ports", NOTE, f"in use: {', '.join(taken)}", means, "--port, --dashboard-port")
    return DoctorFinding("ports", GOOD, "5000, 6379 and 8265 are free")


def _open_files(system: SystemUnderTest) -> DoctorFinding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < MIN_OPEN_FILES:
        means = "a Ray cluster on many CPUs, or a data set of many shards, fails with 'too many open files'"
        return DoctorFinding(
            "open files", WARNING, f"{soft:,} allowed", means, f"ulimit -n {min(65536, hard) if hard > 0 else 65536}"
        )
    return DoctorFinding("open files", GOOD, f"{'unlimited' if soft < 0 else f'{soft:,}'} allowed")


def _threads(system: SystemUnderTest) -> DoctorFinding:
    cpus, given = len(os.sched_getaffinity(0)), system.environment.get("OMP_NUM_THREADS")
    found = f"{cpus} CPUs for this process{f', OMP_NUM_THREADS={given}' if given else ''}"
    if given and given.isdigit() and int(given) > cpus:
        return DoctorFinding(
            "threads",
            WARNING,
            found,
            "threads compete for CPUs, which is often ten times slower",
            "unset OMP_NUM_THREADS",
        )
    busy = os.getloadavg()[0]
    if busy > 1.5 * cpus:
        return DoctorFinding(
            "threads",
            NOTE,
            f"{found}; load average {busy:.0f}",
            "other processes use the CPUs too, so training is slower and timings are unreliable",
        )
    return DoctorFinding("threads", GOOD, found)


def _memory(system: SystemUnderTest) -> DoctorFinding:
    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    if memory.available < 2 * GIB:
        means = "a worker needs about 1.5 GiB and Ray 0.5 GiB: the system may kill them"
        return DoctorFinding(
            "memory", WARNING, found, means, "stop other processes, or train in one process: workers=0"
        )
    return DoctorFinding("memory", GOOD, found)


def _transformers(system: SystemUnderTest) -> DoctorFinding:
    return _library(
        "transformers",
        ("transformers",),
        "mtgen weights convert does not open folders of Hugging Face; training does not need it",
        "pip install 'mtgen[backbones]'",
        NOTE,
    )


def _backbone(system: SystemUnderTest) -> DoctorFinding:
    """Open the pretrained network of a configuration and compute its features of some images."""
    settings = None if system.config is None else system.config.discriminator.backbone
    if settings is None:
        return DoctorFinding("backbone", NOTE, "none", "the discriminator starts from nothing, which suits drawings")
    from mtgen.errors import UserError
    from mtgen.models.backbone_files import backbone_facts, build_backbone

    try:
        found = build_backbone(system.config)
    except UserError as error:
        message, _, remedy = str(error).partition("; ")
        return DoctorFinding("backbone", PROBLEM, message, "training is not possible", remedy)
    assert found is not None  # the configuration has one
    facts = ", ".join(f"{name} {text}" for name, text in backbone_facts(settings).items())
    return DoctorFinding("backbone", GOOD, f"{facts}; features of {found.channels} channels")


CHECKS: dict[str, Callable[[SystemUnderTest], DoctorFinding]] = {
    "Python": _python,
    "torch": _torch,
    "GPU and driver": _driver,
    "NCCL": _nccl,
    "DeepSpeed": lambda system: _library("DeepSpeed", ("deepspeed",), "training is not possible"),
    "DALI": _dali,
    "transformers": _transformers,
    "backbone": _backbone,
    "Ray": _ray,
    "Ray's token": _token,
    "Slurm": _slurm,
    "MLflow": _mlflow,
    "disk of runs": lambda system: _disk("disk of runs", system.runs, "runs=FOLDER on another disk"),
    "disk of the cache": lambda system: _disk("disk of the cache", system.cache, "MTGEN_CACHE=FOLDER on another disk"),
    "file locks": _locks,
    "memory": _memory,
    "shared memory": _shared_memory,
    "ports": _ports,
    "open files": _open_files,
    "threads": _threads,
}


def _check_with_timeout(limit: float, check: str, look: Callable[[], DoctorFinding]) -> DoctorFinding:
    """The finding of a check; a check that takes too long is a problem, and its thread is abandoned."""
    result: list[DoctorFinding] = []

    def work() -> None:
        try:
            result.append(look())
        except Exception as error:  # noqa: BLE001 - any error is a finding, and the other checks still run
            failure = f"the check failed: {type(error).__name__}: {error}"
            result.append(DoctorFinding(check, PROBLEM, failure, remedy="fix this error"))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(limit)
    if not result:
        means = "a file system, driver or server hangs, and training would too"
        return DoctorFinding(check, PROBLEM, f"no answer in {limit:g} s", means, "see mount, nvidia-smi and dmesg")
    return result[0]


def run_checks(
    system: SystemUnderTest,
    checks: dict[str, Callable[[SystemUnderTest], DoctorFinding]] | None = None,
    limit: float = CHECK_TIMEOUT_SECONDS,
) -> list[DoctorFinding]:
    """The findings of all checks, in order; no check can block or stop the others.

    Args:
        system: what to examine.
        checks: name -> check; default: all.
        limit: time limit of each check, in seconds.
    """
    chosen = CHECKS if checks is None else checks
    return [_check_with_timeout(limit, name, lambda look=look: look(system)) for name, look in chosen.items()]  # type: ignore[misc]


def rows(found: list[DoctorFinding]) -> list[dict[str, Any]]:
    """Findings for JSON."""
    return [asdict(finding) for finding in found]
