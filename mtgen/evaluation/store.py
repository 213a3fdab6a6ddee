"""Features of real data on disk: computed once for a data set and an extractor, whatever the runs that are measured with them."""

import hashlib
import json
import os
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load, save

from mtgen.evaluation.features import MOST, Features

FORMAT = 1


@dataclass(frozen=True)
class Key:
    """What the features are of, and how they came about.

    Attributes:
        fingerprint, split: of the data set.
        look: how its images are brought to the networks: sides, channels, how many of them.
        extractor: digest of the extractor.
    """

    fingerprint: str
    split: str
    look: str
    extractor: str

    @property
    def name(self) -> str:
        """Name of its files."""
        told = json.dumps({**asdict(self), "most": MOST, "format": FORMAT}, sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:32]


class Store:
    """A folder of features: safetensors, and beside each a JSON with its key and its checksum.

    Args:
        folder: made where missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: Key) -> Features | None:
        """What is stored; `None` where nothing is. What is damaged is named and passed over, so that it is computed again."""
        file = self.folder / f"{key.name}.safetensors"
        try:
            told = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
            data = file.read_bytes()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            _warn(file, str(error))
            return None
        if told.get("sha256") != hashlib.sha256(data).hexdigest():
            _warn(file, "it is not what its checksum says")
            return None
        return Features.of(load(data))

    def put(self, key: Key, features: Features) -> None:
        """Store features; a folder that cannot be written is named, and costs the time to compute them again."""
        file, data = self.folder / f"{key.name}.safetensors", save(features.tensors())
        told = {"sha256": hashlib.sha256(data).hexdigest(), "images": features.count, **asdict(key)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(file, data)
            _write(file.with_suffix(".json"), json.dumps(told, indent=1).encode())  # last: without it there is nothing
        except OSError as error:
            warnings.warn(f"{file}: cannot be written ({error.strerror}); the features are computed again next time", stacklevel=2)


def _warn(file: Path, why: str) -> None:
    warnings.warn(f"{file}: damaged ({why}); the features are computed again", stacklevel=3)


def _write(path: Path, data: bytes) -> None:
    """Beside, then renamed: another evaluation may write the same file at the same time."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_bytes(data)
    os.replace(beside, path)
