"""Averaged weights as one safetensors file, with everything that is needed to use them in its header."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mtgen.checkpointing.checkpoint import UNFINISHED_SUFFIX, Checkpoint
from mtgen.checkpointing.durable_files import sync
from mtgen.errors import CheckpointError

WEIGHTS_FILE = "model.safetensors"
"""Name of the file in an exported folder."""


@dataclass(frozen=True)
class AveragedWeights:
    """Averaged weights and everything that is needed to use them.

    Attributes:
        path: the checkpoint or file that they come from.
        images: images seen by then.
        config: the resolved configuration, YAML.
        card: the data set's card, as in its JSON.
        tensors: name -> tensor.
    """

    path: Path
    images: int
    config: str
    card: dict[str, Any]
    tensors: dict[str, Tensor]


def weights_of_checkpoint(checkpoint: Checkpoint) -> AveragedWeights:
    """The averaged weights of a checkpoint."""
    card, tensors = checkpoint.state["card"], checkpoint.tensors("ema")
    return AveragedWeights(checkpoint.folder, checkpoint.images, checkpoint.config(), card, tensors)


def export_weights(checkpoint: Checkpoint, path: Path) -> None:
    """Write the averaged weights of a checkpoint as one safetensors file.

    Raises:
        CheckpointError: the file cannot be written; an earlier file of that name is kept.
    """
    write_weights(weights_of_checkpoint(checkpoint), path)


def write_weights(weights: AveragedWeights, path: Path) -> None:
    """Write weights as one safetensors file; `read_weights` reads it.

    Raises:
        CheckpointError: the file cannot be written; an earlier file of that name is kept.
    """
    header = {
        "format": "pt",
        "images": str(weights.images),
        "config": weights.config,
        "card": json.dumps(weights.card),
        "digest": tensor_digest(weights.tensors),
    }
    partial = path.with_name(f".{path.name}{UNFINISHED_SUFFIX}")
    try:
        save_file(weights.tensors, partial, metadata=header)
        sync(partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: cannot be written ({reason}); choose another file") from error


def read_weights(path: Path) -> AveragedWeights:
    """Read a file that `write_weights` wrote.

    Raises:
        CheckpointError: it cannot be read, is damaged, or is another kind of safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        weights = AveragedWeights(path, int(header["images"]), header["config"], json.loads(header["card"]), tensors)
        expected = header["digest"]
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: cannot be read as a model ({reason}): missing or damaged; export it again"
        ) from None
    except (KeyError, ValueError):
        raise CheckpointError(
            f"{path}: not a model exported by mtgen; write one with `mtgen export RUN --out FOLDER`"
        ) from None
    if tensor_digest(tensors) != expected:
        raise CheckpointError(f"{path}: its tensors differ from those that were written: damaged; export it again")
    return weights


def tensor_digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of tensors: equal if and only if the parameters are."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
