"""Checkpoints on disk: tensors as safetensors, the rest as JSON and YAML, nothing pickled; a manifest of checksums over all of it.

A checkpoint is a folder `checkpoints/000000120000` named by the images seen. It is written under another name beside, made durable,
and renamed; a damaged one is named and the one before it is used.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtgen.errors import CheckpointError

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"
PARTIAL = ".partial"
WEIGHTS = "model.safetensors"
"""In an exported folder: the averaged weights, with all that is needed to use them in the file's header."""


class _File(BaseModel):
    bytes: int
    sha256: str


class _Manifest(BaseModel):
    """What a checkpoint's manifest says."""

    images: int
    files: dict[str, _File]


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
        """The tensors of one file: "generator", "discriminator" or "ema"."""
        return load_file(self.folder / f"{name}.safetensors")

    def config(self) -> str:
        """The resolved configuration, YAML."""
        return (self.folder / "config.yaml").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Weights:
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


def save(root: Path, images: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], config: str, keep: int) -> Path:
    """Write one checkpoint under `root`, then drop all but the last `keep`.

    Raises:
        CheckpointError: the disk is full or cannot be written; what was written of it is removed, and all earlier ones stay.
    """
    final = root / f"{images:012d}"
    partial = root / f".{final.name}{PARTIAL}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        for left in root.glob(f".*{PARTIAL}"):  # by a process that was killed
            shutil.rmtree(left)
        partial.mkdir()
        for name, group in tensors.items():
            save_file(group, partial / f"{name}.safetensors")
        (partial / STATE).write_text(json.dumps(state, indent=1, allow_nan=False), encoding="utf-8")
        (partial / "config.yaml").write_text(config, encoding="utf-8")
        files = {p.name: {"sha256": _digest(p), "bytes": p.stat().st_size} for p in sorted(partial.iterdir())}
        (partial / MANIFEST).write_text(json.dumps({"format": FORMAT, "images": images, "files": files}, indent=1), encoding="utf-8")
        for path in partial.iterdir():
            _sync(path)
        _sync(partial)
        if final.exists():  # a damaged one
            shutil.rmtree(final)
        partial.rename(final)
        _sync(root)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        last = max((p.name for p in _all(root)), default="none yet")
        raise CheckpointError(
            f"{final}: the checkpoint cannot be written ({getattr(error, 'strerror', None) or error}); make room or mend the folder, "
            f"then start the same command again: it goes on from the last good checkpoint ({last})"
        ) from error
    kept = _all(root)
    newer = kept.index(final) + 1  # damaged ones, from which the run went back: it will write them again, or never comes there
    for old in kept[: max(newer - keep, 0)] + kept[newer:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _all(root: Path) -> list[Path]:
    """Folders that are named like checkpoints, the oldest first."""
    return sorted(p for p in root.iterdir() if p.is_dir() and re.fullmatch("[0-9]{12}", p.name)) if root.is_dir() else []


def verify(folder: Path) -> Checkpoint:
    """Check every file of a checkpoint against its manifest.

    Raises:
        CheckpointError: names the file that is missing, cut short or changed.
    """
    for name, expected in _manifest(folder).items():
        path = folder / name
        try:
            size, digest = path.stat().st_size, _digest(path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}): lost or damaged") from error
        if size != expected.bytes:
            raise CheckpointError(f"{path}: {size} bytes, {MANIFEST} says {expected.bytes}: cut short or changed")
        if digest != expected.sha256:
            raise CheckpointError(f"{path}: its SHA-256 is not the one in {MANIFEST}: damaged")
    return Checkpoint(folder, json.loads((folder / STATE).read_text(encoding="utf-8")))


def _manifest(folder: Path) -> dict[str, _File]:
    """The files of a checkpoint, as its manifest names them."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        if (written := content.get("format")) != FORMAT:
            raise CheckpointError(f"{path}: format {written}, this version of mtgen reads format {FORMAT}")
        manifest = _Manifest.model_validate(content)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}): lost or damaged") from error
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: is not a checkpoint's manifest: damaged") from error
    if manifest.images != int(folder.name) or STATE not in manifest.files:
        raise CheckpointError(f"{path}: is the manifest of another checkpoint, or damaged")
    return manifest.files


def latest(root: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest good checkpoint under `root`; damaged newer ones are named through `warn`; `None` where there is none at all.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    problems: list[str] = []
    for folder in reversed(_all(root)):
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
class Entry:
    """A checkpoint in a run's list; `problem` says what is wrong with it, as far as it was looked for."""

    folder: Path
    bytes: int
    problem: str | None

    @property
    def images(self) -> int:
        return int(self.folder.name)


def survey(root: Path, whole: bool) -> list[Entry]:
    """Every checkpoint under `root`, the oldest first.

    Args:
        whole: compare every file with its checksum; else the manifest and the files' sizes are looked at.
    """
    return [_entry(folder, whole) for folder in _all(root)]


def _entry(folder: Path, whole: bool) -> Entry:
    problem = None
    try:
        if whole:
            verify(folder)
        else:
            for name, expected in _manifest(folder).items():
                if not (folder / name).is_file() or (folder / name).stat().st_size != expected.bytes:
                    problem = f"{folder / name}: missing, cut short or changed"
    except CheckpointError as error:
        problem = str(error)
    return Entry(folder, sum(path.stat().st_size for path in folder.iterdir() if path.is_file()), problem)


def prune(root: Path, keep: int) -> list[Entry]:
    """Remove all but the newest `keep` checkpoints that are whole; what was removed, the oldest first.

    Raises:
        CheckpointError: none is whole, so that none is removed; or one cannot be removed.
    """
    entries = survey(root, whole=True)
    good = [entry for entry in entries if entry.problem is None][-keep:]
    if entries and not good:
        raise CheckpointError(f"{root}: no checkpoint is whole, so none is removed: {entries[-1].problem}")
    removed = [entry for entry in entries if entry not in good]
    for entry in removed:
        try:
            shutil.rmtree(entry.folder)
        except OSError as error:
            raise CheckpointError(f"{entry.folder}: cannot be removed ({error.strerror})") from error
    return removed


def export(found: Checkpoint, path: Path) -> None:
    """The averaged weights of a checkpoint alone, as one safetensors file; configuration and data set card are in its header.

    Raises:
        CheckpointError: the file cannot be written; one of that name that was there before stays.
    """
    write_weights(weights(found), path)


def weights(found: Checkpoint) -> Weights:
    """The averaged weights of a checkpoint."""
    return Weights(found.folder, found.images, found.config(), found.state["card"], found.tensors("ema"))


def write_weights(some: Weights, path: Path) -> None:
    """Weights as one safetensors file, everything else in its header; `read_weights` gives them back.

    Raises:
        CheckpointError: the file cannot be written; one of that name that was there before stays.
    """
    header = {"format": "pt", "images": str(some.images), "config": some.config, "card": json.dumps(some.card)}
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        save_file(some.tensors, partial, metadata=header | {"digest": digest(some.tensors)})
        _sync(partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error}); name another file") from error


def read_weights(path: Path) -> Weights:
    """What `write_weights` wrote.

    Raises:
        CheckpointError: it cannot be read, is damaged, or is a safetensors file of something else.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        images, config, card, expected = int(header["images"]), header["config"], json.loads(header["card"]), header["digest"]
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CheckpointError(f"{path}: cannot be read as a model ({reason}): lost or damaged; export it again") from None
    except (KeyError, ValueError):
        raise CheckpointError(f"{path}: is no model that mtgen exported; write one with `mtgen export RUN --to FOLDER`") from None
    if digest(tensors) != expected:
        raise CheckpointError(f"{path}: its tensors are not those that were written: damaged; export it again")
    return Weights(path, images, config, card, tensors)


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of tensors: equal exactly when two runs' parameters are."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()
