"""On-disk cache of features, reference models, and the progress of an evaluation."""

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

CACHE_FORMAT = 3
"""Version of the entries. It is part of every file name, so entries of other versions are never found."""
STALE_FILE_SECONDS = 3600.0
"""Age at which a temporary file no longer belongs to a running process, seconds."""


class TensorCache:
    """A folder of cached tensors.

    An entry is a JSON file with its key, its note, and the name and checksum of a safetensors file beside it.

    Args:
        folder: created on the first write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _entry_path(self, key: Mapping[str, Any]) -> Path:
        return self.folder / f"{_entry_name(key)}.json"

    def get(self, key: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any] | None:
        """Tensors and their note; `None` where there is no entry, or where it is damaged (with a warning)."""
        path = self._entry_path(key)
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            data = (self.folder / entry["file"]).read_bytes()
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError) as error:
            _warn_damaged(path, str(error))
            return None
        if entry["sha256"] != hashlib.sha256(data).hexdigest():
            _warn_damaged(self.folder / entry["file"], "its checksum does not match")
            return None
        return load(data), entry["note"]

    def put(self, key: Mapping[str, Any], tensors: dict[str, Tensor], note: Any = None) -> None:
        """Store tensors and a JSON note; a process killed meanwhile leaves the previous entry in place.

        A folder that cannot be written is a warning, since the entry can be computed again.
        """
        path = self._entry_path(key)
        data = save(tensors)
        digest = hashlib.sha256(data).hexdigest()
        file = path.with_name(f"{path.stem}-{digest[:16]}.safetensors")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write_atomically(file, data)
            entry = {"file": file.name, "sha256": digest, "key": key, "note": note}
            _write_atomically(path, json.dumps(entry, indent=1).encode())
            self._remove_previous(path, current=file)
        except OSError as error:
            warnings.warn(
                f"{file}: cannot be written ({error.strerror}); it will be computed again next time", stacklevel=2
            )

    def _remove_previous(self, path: Path, current: Path) -> None:
        for file in self.folder.glob(f"{path.stem}-*"):
            if file != current:
                file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder with its entries, and the parent folder if it is empty then."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # the parent holds something else, or never existed
            self.folder.parent.rmdir()


@dataclass(frozen=True)
class CacheScope:
    """A cache together with a key, which callees extend by what their own entry depends on.

    Attributes:
        cache: `None`: nothing is stored.
        key: JSON values that the entries below depend on.
    """

    cache: TensorCache | None = None
    key: Mapping[str, Any] = field(default_factory=dict)

    def extend(self, **more: Any) -> "CacheScope":
        """The scope with a longer key."""
        return CacheScope(self.cache, {**self.key, **more})

    def get(self) -> tuple[dict[str, Tensor], Any] | None:
        """The entry with this key, see `TensorCache.get`."""
        return None if self.cache is None else self.cache.get(self.key)

    def put(self, tensors: dict[str, Tensor], note: Any = None) -> None:
        """Store the entry with this key, see `TensorCache.put`."""
        if self.cache is not None:
            self.cache.put(self.key, tensors, note)

    def nested_cache(self) -> TensorCache | None:
        """A separate cache in a subfolder that is named by the key."""
        return None if self.cache is None else TensorCache(self.cache.folder / _entry_name(self.key))


NO_CACHE = CacheScope()
"""A scope that stores nothing."""


def _entry_name(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps({**key, "format": CACHE_FORMAT}, sort_keys=True).encode()).hexdigest()[:32]


def _warn_damaged(file: Path, why: str) -> None:
    warnings.warn(f"{file}: damaged ({why}); it will be computed again", stacklevel=4)


def _write_atomically(path: Path, data: bytes) -> None:
    """Write a temporary file and rename it: another evaluation may write the same entry at the same time."""
    for stale in path.parent.glob(".*.safetensors.*"):  # left by evaluations that were killed
        with suppress(OSError):
            if time.time() - stale.stat().st_mtime > STALE_FILE_SECONDS:
                stale.unlink()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
