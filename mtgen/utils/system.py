"""The system that a run uses: its load, the version of the code, and the file system of a folder."""

import subprocess
import sys
from pathlib import Path

import psutil

from mtgen.version import PACKAGE, __version__


def system_metrics(folder: Path) -> dict[str, float]:
    """The system's load, under the names of MLflow's system metrics, in percent or megabytes as their names say.

    Args:
        folder: folder of the run, whose disk's free space is one of the metrics.
    """
    values = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_percentage": psutil.virtual_memory().percent,
        "system/process_memory_usage_megabytes": psutil.Process().memory_info().rss / 1e6,
        "system/disk_available_megabytes": psutil.disk_usage(str(folder)).free / 1e6,
    }
    torch = sys.modules.get("torch")  # imported if this process trains on a GPU
    if torch is not None and torch.cuda.is_initialized():
        device = torch.cuda.current_device()  # asking for another one would start a CUDA context on it
        free, total = torch.cuda.mem_get_info(device)
        values[f"system/gpu_{device}_memory_usage_percentage"] = 100 * (1 - free / total)
    return values


def code_version() -> dict[str, str]:
    """mtgen's version and, in a git checkout, its commit and whether files differ from it; as MLflow tags."""
    tags = {"mtgen.version": __version__}
    if _git("ls-files", "--error-unmatch", "__init__.py") is not None and (commit := _git("rev-parse", "HEAD")):
        tags["mlflow.source.git.commit"] = commit
        tags["git.dirty"] = "true" if _git("status", "--porcelain", "--", ".") else "false"
    return tags


def _git(*words: str) -> str | None:
    """Output of a git command in the package's folder; `None` if git fails there, as outside a checkout."""
    try:
        command = ["git", "-C", str(PACKAGE), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def mount_of(path: Path) -> tuple[str, str]:
    """Type of the file system of a path, such as "nfs4", and where it is mounted; "unknown" and "" if nobody knows."""
    path = path.resolve()
    mounts = [mount for mount in psutil.disk_partitions(all=True) if path.is_relative_to(mount.mountpoint)]
    last = max(mounts, key=lambda mount: len(mount.mountpoint), default=None)
    return (last.fstype, last.mountpoint) if last else ("unknown", "")


def file_system(path: Path) -> str:
    """The file system of a path, such as "nfs4 at /shared"."""
    kind, where = mount_of(path)
    return f"{kind} at {where}" if where else kind
