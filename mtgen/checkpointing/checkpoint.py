"""Checkpoints on disk: tensors as safetensors, the rest as JSON and YAML, nothing pickled; a manifest of checksums over all of it.

A checkpoint is a folder `checkpoints/000000120000` named by the images seen. It is written under another name beside, made durable, read
back, and renamed; a damaged one is named and the one before it is used. One that goes is renamed first, so that no half of it is ever
taken for a checkpoint.
"""

import contextlib
import errno
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
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from safetensors.torch import save as encoded
from torch import Tensor

from mtgen.checkpointing.retention import Retention
from mtgen.errors import CheckpointError

CHECKPOINT_FORMAT = 1
MANIFEST_FILE = "manifest.json"
STATE_FILE = "state.json"
METRICS_KEY = "metrics"
"""In the state: what was measured at these images, name -> number."""
UNFINISHED_SUFFIX, REMOVED_SUFFIX = ".partial", ".removed"
WEIGHTS_FILE = "model.safetensors"
"""In an exported folder: the averaged weights, with all that is needed to use them in the file's header."""


class _File(BaseModel):
    bytes: int
    sha256: str


class _Manifest(BaseModel):
    """What a checkpoint's manifest says."""

    images: int
    files: dict[str, _File]

    @field_validator("files")
    @classmethod
    def _inside(cls, value: dict[str, _File]) -> dict[str, _File]:
        if any(name != Path(name).name or name in ("", ".", "..", MANIFEST_FILE) for name in value):
            raise ValueError("a file of a checkpoint lies in its folder")
        return value


@dataclass
class Checkpoint:
    """One good checkpoint: every file's checksum has been verified.

    Attributes:
        folder: where it lies.
        state: everything that is not a tensor (images seen, counters, data set's fingerprint, ...).
    """

    folder: Path
    state: dict[str, Any]

    @property
    def images(self) -> int:
        """Images seen when it was written."""
        return int(self.folder.name)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file: "generator", "discriminator" or "ema".

        Raises:
            CheckpointError: the file is none of safetensors, whatever its manifest says.
        """
        path = self.folder / f"{name}.safetensors"
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(
                f"{path}: is no safetensors file ({error}); nothing else is read, and nothing is unpickled"
            ) from error

    def config(self) -> str:
        """The resolved configuration, YAML."""
        return (self.folder / "config.yaml").read_text(encoding="utf-8")


@dataclass(frozen=True)
class AveragedWeights:
    """Averaged weights with what is needed to use them.

    Attributes:
        path: the checkpoint or the file that they are from.
        images: images seen by then.
        config: the resolved configuration, YAML.
        card: of the data set, as JSON has it.
        tensors: by name.
    """

    path: Path
    images: int
    config: str
    card: dict[str, Any]
    tensors: dict[str, Tensor]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, content: bytes) -> None:
    """A new file, on the disk when this returns, and read back.

    By the system's own calls, each of which `benchmarks/chaos_writes.py` interrupts.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if _digest(path) != hashlib.sha256(content).hexdigest():
        raise OSError(errno.EIO, f"{path.name} reads back otherwise than it was written")


def save(
    root: Path, images: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], config: str, keep: Retention
) -> Path:
    """Write one checkpoint under `root`, then drop those that `keep` has no reason for. Takes what is in the tensors while it runs.

    Raises:
        CheckpointError: the disk is full or cannot be written; what was written of it is removed, and all earlier ones stay.
    """
    final = root / f"{images:012d}"
    partial = root / f".{final.name}{UNFINISHED_SUFFIX}"
    try:
        os.makedirs(root, exist_ok=True)
        remove_leftovers(root)
        os.mkdir(partial)
        files = {}
        for name, content in _contents(tensors, state, config):
            _write(partial / name, content)
            files[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        about = {"format": CHECKPOINT_FORMAT, "images": images, "files": dict(sorted(files.items()))}
        _write(partial / MANIFEST_FILE, json.dumps(about, indent=1).encode())
        _sync(partial)
        if final.exists():  # a damaged one
            _remove(final)
        finalize(partial, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        last = max((p.name for p in checkpoint_folders(root)), default="none yet")
        raise CheckpointError(
            f"{final}: the checkpoint cannot be written ({getattr(error, 'strerror', None) or error}); make room or mend the folder, "
            f"then start the same command again: it goes on from the last good checkpoint ({last})"
        ) from error
    _drop(root, final, keep)
    return final


def _contents(tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], config: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of a checkpoint's files, one after the other, so that memory holds one of them."""
    for name, group in tensors.items():
        yield f"{name}.safetensors", encoded(group)
    yield STATE_FILE, json.dumps(state, indent=1, allow_nan=False).encode()
    yield "config.yaml", config.encode()


def remove_leftovers(root: Path) -> None:
    """Take away what a killed process left: a checkpoint half written, or half removed."""
    for left in [*root.glob(f".*{UNFINISHED_SUFFIX}"), *root.glob(f".*{REMOVED_SUFFIX}")]:
        shutil.rmtree(left)


def finalize(folder: Path, final: Path) -> None:
    """Give a checkpoint that is whole its name, for good."""
    os.rename(folder, final)
    _sync(final.parent)


def _remove(folder: Path) -> None:
    """Take a checkpoint away; a process that is killed in here leaves all of it, or nothing that looks like one."""
    gone = folder.with_name(f".{folder.name}{REMOVED_SUFFIX}")
    os.rename(folder, gone)
    shutil.rmtree(gone)


def _drop(root: Path, newest: Path, keep: Retention) -> None:
    """Remove the checkpoints that nothing speaks for."""
    there = checkpoint_folders(root)
    newer = (
        there.index(newest) + 1
    )  # damaged ones, from which the run went back: it will write them again, or never comes there
    why = keep.reasons({int(folder.name): snapshot_metrics(folder) for folder in there[:newer]})
    for folder in there:
        if not why.get(int(folder.name)):
            with contextlib.suppress(
                OSError
            ):  # then it stays whole, or hidden until the next checkpoint; the new one is good
                _remove(folder)


def snapshot_metrics(folder: Path) -> dict[str, float]:
    """What a snapshot measured when this checkpoint was written; nothing where there was none, or its state cannot be read."""
    try:
        return metrics_in_state((folder / STATE_FILE).read_bytes())
    except OSError:
        return {}


def metrics_in_state(state: bytes) -> dict[str, float]:
    """The same, of what a state's file holds."""
    try:
        numbers = json.loads(state).get(METRICS_KEY) or {}
        return {str(name): float(value) for name, value in numbers.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder is named like a checkpoint."""
    return re.fullmatch("[0-9]{12}", name, re.ASCII) is not None


def checkpoint_folders(root: Path) -> list[Path]:
    """Folders that are named like checkpoints, the oldest first."""
    return sorted(p for p in root.iterdir() if p.is_dir() and is_checkpoint_name(p.name)) if root.is_dir() else []


def verify(folder: Path) -> Checkpoint:
    """Check every file of a checkpoint against its manifest.

    Raises:
        CheckpointError: names the file that is missing, cut short or changed.
    """
    for name, expected in manifest(folder).items():
        path = folder / name
        try:
            size, digest = path.stat().st_size, _digest(path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}): lost or damaged") from error
        if size != expected.bytes:
            raise CheckpointError(f"{path}: {size} bytes, {MANIFEST_FILE} says {expected.bytes}: cut short or changed")
        if digest != expected.sha256:
            raise CheckpointError(f"{path}: its SHA-256 is not the one in {MANIFEST_FILE}: damaged")
    try:
        return Checkpoint(folder, json.loads((folder / STATE_FILE).read_bytes()))
    except ValueError as error:
        raise CheckpointError(
            f"{folder / STATE_FILE}: is no JSON ({error}); nothing else is read, and nothing is unpickled"
        ) from error


def manifest(folder: Path) -> dict[str, _File]:
    """The files of a checkpoint, as its manifest names them."""
    path = folder / MANIFEST_FILE
    try:
        content = json.loads(path.read_bytes())
        if (written := content.get("format")) != CHECKPOINT_FORMAT:
            raise CheckpointError(f"{path}: format {written}, this version of mtgen reads format {CHECKPOINT_FORMAT}")
        about = _Manifest.model_validate(content)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}): lost or damaged") from error
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: is not a checkpoint's manifest: damaged") from error
    if about.images != int(folder.name) or STATE_FILE not in about.files:
        raise CheckpointError(f"{path}: is the manifest of another checkpoint, or damaged")
    return about.files


def latest(root: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest good checkpoint under `root`; damaged newer ones are named through `warn`; `None` where there is none at all.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    problems: list[str] = []
    for folder in reversed(checkpoint_folders(root)):
        try:
            found = verify(folder)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            warn(f"{problem}; the checkpoint before it is used, {found.folder.name}")
        return found
    if problems:
        raise CheckpointError(
            f"{root}: no checkpoint is whole; begin again under another name, or bring back a copy: {'; '.join(problems)}"
        )
    return None


@dataclass(frozen=True)
class CheckpointEntry:
    """A checkpoint in a run's list.

    Attributes:
        problem: what is wrong with it, as far as it was looked for.
        reasons: why it stays when the next one is written.
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
    """Every checkpoint under `root`, the oldest first.

    Args:
        whole: compare every file with its checksum; else the manifest and the files' sizes are looked at.
        keep: what the reasons are given by.
    """
    problems = {folder: _problem(folder, whole) for folder in checkpoint_folders(root)}
    good = {int(folder.name): snapshot_metrics(folder) for folder, problem in problems.items() if problem is None}
    why = keep.reasons(good) if keep else {}
    return [
        CheckpointEntry(
            folder,
            sum(path.stat().st_size for path in folder.glob("*") if path.is_file()),
            problem,
            why.get(int(folder.name), []),
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
                    return f"{folder / name}: missing, cut short or changed"
    except CheckpointError as error:
        return str(error)
    return None


def prune(root: Path, keep: Retention) -> list[CheckpointEntry]:
    """Remove all checkpoints but those that are whole and that `keep` has a reason for; what was removed, the oldest first.

    Raises:
        CheckpointError: none is whole, so that none is removed; or one cannot be removed.
    """
    entries = list_checkpoints(root, whole=True, keep=keep)
    if entries and all(entry.problem for entry in entries):
        raise CheckpointError(f"{root}: no checkpoint is whole, so none is removed: {entries[-1].problem}")
    removed = [entry for entry in entries if not entry.reasons]
    try:
        remove_leftovers(root)
        for entry in removed:
            _remove(entry.folder)
    except OSError as error:
        raise CheckpointError(f"{error.filename or root}: cannot be removed ({error.strerror})") from error
    return removed


def export(found: Checkpoint, path: Path) -> None:
    """The averaged weights of a checkpoint alone, as one safetensors file; configuration and data set card are in its header.

    Raises:
        CheckpointError: the file cannot be written; one of that name that was there before stays.
    """
    write_weights(weights(found), path)


def weights(found: Checkpoint) -> AveragedWeights:
    """The averaged weights of a checkpoint."""
    return AveragedWeights(found.folder, found.images, found.config(), found.state["card"], found.tensors("ema"))


def write_weights(some: AveragedWeights, path: Path) -> None:
    """Weights as one safetensors file, everything else in its header; `read_weights` gives them back.

    Raises:
        CheckpointError: the file cannot be written; one of that name that was there before stays.
    """
    header = {"format": "pt", "images": str(some.images), "config": some.config, "card": json.dumps(some.card)}
    partial = path.with_name(f".{path.name}{UNFINISHED_SUFFIX}")
    try:
        save_file(some.tensors, partial, metadata=header | {"digest": digest(some.tensors)})
        _sync(partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path}: cannot be written ({getattr(error, 'strerror', None) or error}); name another file"
        ) from error


def read_weights(path: Path) -> AveragedWeights:
    """What `write_weights` wrote.

    Raises:
        CheckpointError: it cannot be read, is damaged, or is a safetensors file of something else.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        images, config, card, expected = (
            int(header["images"]),
            header["config"],
            json.loads(header["card"]),
            header["digest"],
        )
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: cannot be read as a model ({reason}): lost or damaged; export it again"
        ) from None
    except (KeyError, ValueError):
        raise CheckpointError(
            f"{path}: is no model that mtgen exported; write one with `mtgen export RUN --out FOLDER`"
        ) from None
    if digest(tensors) != expected:
        raise CheckpointError(f"{path}: its tensors are not those that were written: damaged; export it again")
    return AveragedWeights(path, images, config, card, tensors)


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of tensors: equal exactly when two runs' parameters are."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()
