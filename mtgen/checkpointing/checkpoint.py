"""Checkpoints on disk: tensors as safetensors, the rest as JSON and YAML, never pickled, with a manifest of checksums.

A checkpoint is a folder `checkpoints/000000120000`, named by the images seen. It is written under a temporary name,
flushed to the disk, verified and renamed. If a checkpoint is damaged, a warning names it and the one before it is used.
A checkpoint is renamed before it is removed, so that an interrupted removal never looks like a checkpoint.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from mtgen.checkpointing.durable_files import file_digest, sync, write_durable
from mtgen.checkpointing.retention import Retention
from mtgen.errors import CheckpointError

CHECKPOINT_FORMAT = 1
MANIFEST_FILE = "manifest.json"
STATE_FILE = "state.json"
METRICS_KEY = "metrics"
"""Key of the state for the metrics of a snapshot at this checkpoint: name -> number."""

UNFINISHED_SUFFIX = ".partial"
REMOVED_SUFFIX = ".removed"


class FileRecord(BaseModel):
    """A file in the manifest: its size and SHA-256."""

    bytes: int
    sha256: str


class _Manifest(BaseModel):
    """The content of a checkpoint's manifest."""

    images: int
    files: dict[str, FileRecord]

    @field_validator("files")
    @classmethod
    def _inside(cls, value: dict[str, FileRecord]) -> dict[str, FileRecord]:
        if any(name != Path(name).name or name in ("", ".", "..", MANIFEST_FILE) for name in value):
            raise ValueError("a file of a checkpoint is in its folder")
        return value


@dataclass
class Checkpoint:
    """A checkpoint whose checksums have been verified.

    Attributes:
        folder: its folder.
        state: everything that is not a tensor (images seen, counters, fingerprint of the data set, ...).
    """

    folder: Path
    state: dict[str, Any]

    @property
    def images(self) -> int:
        """Images seen when it was written."""
        return int(self.folder.name)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Read the tensors of one file: "generator", "discriminator" or "ema".

        Raises:
            CheckpointError: it is not a safetensors file, although its checksum is right.
        """
        path = self.folder / f"{name}.safetensors"
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not a safetensors file ({error}); mtgen reads no other format") from error

    def config(self) -> str:
        """The resolved configuration, YAML."""
        return (self.folder / "config.yaml").read_text(encoding="utf-8")


def save(
    root: Path, images: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], config: str, keep: Retention
) -> Path:
    """Write one checkpoint under `root`, then remove the checkpoints that `keep` does not retain.

    The tensors must not change while this runs.

    Raises:
        CheckpointError: the disk is full or not writable. The incomplete checkpoint is removed, earlier ones are kept.
    """
    final = root / f"{images:012d}"
    partial = root / f".{final.name}{UNFINISHED_SUFFIX}"
    try:
        os.makedirs(root, exist_ok=True)
        remove_leftovers(root)
        os.mkdir(partial)
        files = {}
        for name, content in _contents(tensors, state, config):
            write_durable(partial / name, content)
            files[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        entries = {"format": CHECKPOINT_FORMAT, "images": images, "files": dict(sorted(files.items()))}
        write_durable(partial / MANIFEST_FILE, json.dumps(entries, indent=1).encode())
        sync(partial)
        if final.exists():  # a damaged checkpoint
            _remove(final)
        finalize(partial, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        last = max((p.name for p in checkpoint_folders(root)), default="none yet")
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{final}: the checkpoint cannot be written ({reason}); free disk space or fix the folder's permissions, "
            f"then run the same command again: it resumes from the last good checkpoint ({last})"
        ) from error
    _remove_old(root, final, keep)
    return final


def _contents(tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], config: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of a checkpoint's files, one at a time, so that only one of them is in memory."""
    for name, group in tensors.items():
        yield f"{name}.safetensors", to_safetensors(group)
    yield STATE_FILE, json.dumps(state, indent=1, allow_nan=False).encode()
    yield "config.yaml", config.encode()


def remove_leftovers(root: Path) -> None:
    """Remove what a killed process left behind: a checkpoint half written or half removed."""
    for left in [*root.glob(f".*{UNFINISHED_SUFFIX}"), *root.glob(f".*{REMOVED_SUFFIX}")]:
        shutil.rmtree(left)


def finalize(folder: Path, final: Path) -> None:
    """Give a complete checkpoint its final name, durably."""
    os.rename(folder, final)
    sync(final.parent)


def _remove(folder: Path) -> None:
    """Remove a checkpoint; a process killed meanwhile leaves all of it, or nothing that looks like a checkpoint."""
    removed = folder.with_name(f".{folder.name}{REMOVED_SUFFIX}")
    os.rename(folder, removed)
    shutil.rmtree(removed)


def _remove_old(root: Path, newest: Path, keep: Retention) -> None:
    """Remove the checkpoints that `keep` does not retain.

    Checkpoints after `newest` are damaged ones, before which the run has resumed; they are removed too.
    """
    folders = checkpoint_folders(root)
    current = folders[: folders.index(newest) + 1]
    reasons = keep.reasons({int(folder.name): snapshot_metrics(folder) for folder in current})
    for folder in folders:
        if not reasons.get(int(folder.name)):
            # after an error the old one stays complete, or hidden until the next checkpoint; the new one is good
            with contextlib.suppress(OSError):
                _remove(folder)


def snapshot_metrics(folder: Path) -> dict[str, float]:
    """Metrics of the snapshot at a checkpoint; empty if there was none, or the state cannot be read."""
    try:
        return metrics_in_state((folder / STATE_FILE).read_bytes())
    except OSError:
        return {}


def metrics_in_state(state: bytes) -> dict[str, float]:
    """Like `snapshot_metrics`, from the content of a state file."""
    try:
        metrics = json.loads(state).get(METRICS_KEY) or {}
        return {str(name): float(value) for name, value in metrics.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder of this name is a checkpoint."""
    return re.fullmatch("[0-9]{12}", name, re.ASCII) is not None


def checkpoint_folders(root: Path) -> list[Path]:
    """Folders whose names are those of checkpoints, the oldest first."""
    return sorted(p for p in root.iterdir() if p.is_dir() and is_checkpoint_name(p.name)) if root.is_dir() else []


def verify(folder: Path) -> Checkpoint:
    """Compare every file of a checkpoint with its manifest.

    Raises:
        CheckpointError: names the file that is missing, truncated or changed.
    """
    for name, expected in manifest(folder).items():
        path = folder / name
        try:
            size, digest = path.stat().st_size, file_digest(path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}): missing or damaged") from error
        if size != expected.bytes:
            raise CheckpointError(
                f"{path}: has {size} bytes, {expected.bytes} in {MANIFEST_FILE}: truncated or changed"
            )
        if digest != expected.sha256:
            raise CheckpointError(f"{path}: its SHA-256 differs from that in {MANIFEST_FILE}: damaged")
    try:
        return Checkpoint(folder, json.loads((folder / STATE_FILE).read_bytes()))
    except ValueError as error:
        raise CheckpointError(
            f"{folder / STATE_FILE}: not a JSON file ({error}); mtgen reads no other format"
        ) from error


def manifest(folder: Path) -> dict[str, FileRecord]:
    """Read the manifest of a checkpoint: file name -> its size and checksum.

    Raises:
        CheckpointError: it is missing or damaged, or has another format.
    """
    path = folder / MANIFEST_FILE
    try:
        content = json.loads(path.read_bytes())
        if (version := content.get("format")) != CHECKPOINT_FORMAT:
            raise CheckpointError(f"{path}: format {version}, this version of mtgen reads format {CHECKPOINT_FORMAT}")
        parsed = _Manifest.model_validate(content)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}): missing or damaged") from error
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not the manifest of a checkpoint: damaged") from error
    if parsed.images != int(folder.name) or STATE_FILE not in parsed.files:
        raise CheckpointError(f"{path}: the manifest of another checkpoint, or damaged")
    return parsed.files


def latest(root: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Open the newest good checkpoint under `root`; `None` if there are no checkpoints.

    Args:
        warn: called with a message for every newer checkpoint that is damaged.

    Raises:
        CheckpointError: there are checkpoints, but all of them are damaged.
    """
    problems: list[str] = []
    for folder in reversed(checkpoint_folders(root)):
        try:
            checkpoint = verify(folder)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            warn(f"{problem}; using the checkpoint before it, {checkpoint.folder.name}")
        return checkpoint
    if problems:
        raise CheckpointError(
            f"{root}: all checkpoints are damaged; restore a copy, or start a new run with another name: "
            f"{'; '.join(problems)}"
        )
    return None


@dataclass(frozen=True)
class CheckpointEntry:
    """A checkpoint in a run's list.

    Attributes:
        folder: its folder.
        bytes: its size on disk.
        problem: what is wrong with it, as far as it was checked.
        reasons: why it is kept when the next checkpoint is written.
    """

    folder: Path
    bytes: int
    problem: str | None
    reasons: list[str]

    @property
    def images(self) -> int:
        """Images seen when it was written."""
        return int(self.folder.name)


def list_checkpoints(root: Path, whole: bool, keep: Retention | None = None) -> list[CheckpointEntry]:
    """List every checkpoint under `root`, the oldest first.

    Args:
        whole: compare every file with its checksum; otherwise only the manifest and the sizes are checked.
        keep: the retention that gives the reasons.
    """
    problems = {folder: _problem(folder, whole) for folder in checkpoint_folders(root)}
    good = {int(folder.name): snapshot_metrics(folder) for folder, problem in problems.items() if problem is None}
    reasons = keep.reasons(good) if keep else {}
    return [
        CheckpointEntry(
            folder,
            sum(path.stat().st_size for path in folder.glob("*") if path.is_file()),
            problem,
            reasons.get(int(folder.name), []),
        )
        for folder, problem in problems.items()
    ]


def _problem(folder: Path, whole: bool) -> str | None:
    try:
        if whole:
            verify(folder)
        else:
            for name, expected in manifest(folder).items():
                if not (folder / name).is_file() or (folder / name).stat().st_size != expected.bytes:
                    return f"{folder / name}: missing, truncated or changed"
    except CheckpointError as error:
        return str(error)
    return None


def prune(root: Path, keep: Retention) -> list[CheckpointEntry]:
    """Remove the checkpoints that are damaged or not retained by `keep`; returns the removed ones, the oldest first.

    Raises:
        CheckpointError: all checkpoints are damaged, so that none is removed; or one cannot be removed.
    """
    entries = list_checkpoints(root, whole=True, keep=keep)
    if entries and all(entry.problem for entry in entries):
        raise CheckpointError(f"{root}: all checkpoints are damaged, so none is removed: {entries[-1].problem}")
    removed = [entry for entry in entries if not entry.reasons]
    try:
        remove_leftovers(root)
        for entry in removed:
            _remove(entry.folder)
    except OSError as error:
        raise CheckpointError(f"{error.filename or root}: cannot be removed ({error.strerror})") from error
    return removed
