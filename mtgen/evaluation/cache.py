"""What an evaluation keeps on disk because it takes long to make: features, networks, and how far it is."""

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

CACHE_FORMAT = 2
STALE_FILE_SECONDS = 3600.0
"""Seconds after which a file that is half written belongs to nobody any more."""


class TensorCache:
    """A folder of tensors: a JSON with what they are of, and the name and the checksum of the safetensors beside it.

    Args:
        folder: made where missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _told(self, of: Mapping[str, Any]) -> Path:
        """The JSON, named for what the tensors are of and how they came about."""
        return self.folder / f"{_name(of)}.json"

    def get(self, of: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any] | None:
        """Tensors and their note; `None` where nothing is stored. What is damaged is named and passed over, so that it is made again."""
        path = self._told(of)
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            data = (self.folder / told["file"]).read_bytes()
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError) as error:
            _warn(path, str(error))
            return None
        if told["sha256"] != hashlib.sha256(data).hexdigest():
            _warn(self.folder / told["file"], "it is not what its checksum says")
            return None
        return load(data), told["note"]

    def put(self, of: Mapping[str, Any], tensors: dict[str, Tensor], note: Any = None) -> None:
        """Store tensors and a note in JSON's types: these or, if it is killed, what was there before.

        A folder that cannot be written is named, and costs the time to make them again.
        """
        path, data = self._told(of), save(tensors)
        digest = hashlib.sha256(data).hexdigest()
        file = path.with_name(f"{path.stem}-{digest[:16]}.safetensors")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(file, data)
            _write(path, json.dumps({"file": file.name, "sha256": digest, "of": of, "note": note}, indent=1).encode())
            self._remove(path, but=file)
        except OSError as error:
            warnings.warn(f"{file}: cannot be written ({error.strerror}); it is made again next time", stacklevel=2)

    def _remove(self, path: Path, but: Path | None = None) -> None:
        for file in self.folder.glob(f"{path.stem}-*"):
            if file != but:
                file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder with all that it holds, and the one that it lies in with the last of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # there is something else in it, or it was never made
            self.folder.parent.rmdir()


@dataclass(frozen=True)
class CacheScope:
    """A part of a store: what has some facts in common.

    Attributes:
        store: `None`: nothing is kept.
        of: the facts.
    """

    store: TensorCache | None = None
    of: Mapping[str, Any] = field(default_factory=dict)

    def at(self, **more: Any) -> "CacheScope":
        """A part of this part."""
        return CacheScope(self.store, {**self.of, **more})

    def get(self) -> tuple[dict[str, Tensor], Any] | None:
        """See `TensorCache.get`."""
        return None if self.store is None else self.store.get(self.of)

    def put(self, tensors: dict[str, Tensor], note: Any = None) -> None:
        """See `TensorCache.put`."""
        if self.store is not None:
            self.store.put(self.of, tensors, note)

    def nested_cache(self) -> TensorCache | None:
        """A store of its own within the store, for what has these facts."""
        return None if self.store is None else TensorCache(self.store.folder / _name(self.of))


NO_CACHE = CacheScope()
"""Nothing is kept."""


def _name(of: Mapping[str, Any]) -> str:
    """A file's name for facts in JSON's types."""
    return hashlib.sha256(json.dumps({**of, "format": CACHE_FORMAT}, sort_keys=True).encode()).hexdigest()[:32]


def _warn(file: Path, why: str) -> None:
    warnings.warn(f"{file}: damaged ({why}); what it holds is made again", stacklevel=4)


def _write(path: Path, data: bytes) -> None:
    """Beside, then renamed: another evaluation may write the same file at the same time."""
    for left in path.parent.glob(".*.safetensors.*"):  # of evaluations that were killed
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE_FILE_SECONDS:
                left.unlink()
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(data)
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
