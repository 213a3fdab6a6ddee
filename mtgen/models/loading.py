"""Runs and exported models on disk: find one by name, load its averaged weights, describe its newest checkpoint."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mtgen.checkpointing import checkpoint
from mtgen.checkpointing.averaged_weights import (
    WEIGHTS_FILE,
    AveragedWeights,
    read_weights,
    tensor_digest,
    weights_of_checkpoint,
)
from mtgen.checkpointing.checkpoint import MANIFEST_FILE, Checkpoint
from mtgen.checkpointing.retention import Retention
from mtgen.config import CheckpointConfig as Settings
from mtgen.config import Config, legacy, resolve_device, validate
from mtgen.errors import CheckpointError
from mtgen.models import assets
from mtgen.models.ema import EMA
from mtgen.models.model import Model, build
from mtgen.registry import suggest
from mtgen.schema import DatasetCard
from mtgen.version import __version__


def find_run(run: str | Path, runs: Path = Path("runs")) -> Path:
    """Find the folder of a run or an exported model, given by its path or its name under `runs`.

    Raises:
        CheckpointError: it does not exist; the nearest name is suggested.
    """
    for folder in (Path(run), runs / run):
        if (folder / "checkpoints").is_dir() or (folder / WEIGHTS_FILE).is_file():
            return folder.absolute()
    known = sorted(p.parent.name for p in runs.glob("*/checkpoints"))
    hint = suggest(Path(run).name, known) if known else f"there are no runs in {runs.absolute()}"
    raise CheckpointError(f"{run}: not a run with checkpoints; {hint}")


def find_model(path: str | Path) -> Path:
    """Like `find_run`, but also accepts the path of a checkpoint or of an exported file."""
    return Path(path).absolute() if Path(path).is_file() or (Path(path) / MANIFEST_FILE).is_file() else find_run(path)


def newest(folder: Path) -> Checkpoint:
    """Open the newest good checkpoint of a run; warnings about damaged ones go to standard error.

    Raises:
        CheckpointError: the run has none.
    """
    found = checkpoint.latest(folder / "checkpoints", warn=lambda text: print(f"warning: {text}", file=sys.stderr))
    if found is None:
        if (folder / WEIGHTS_FILE).is_file():
            raise CheckpointError(f"{folder}: an exported model; give the run that it was exported from")
        raise CheckpointError(f"{folder}: has no checkpoint yet; the first comes after checkpoint.every images")
    return found


def retention_of(folder: Path, last: int | None = None) -> Retention:
    """The retention of a run's checkpoints, from its configuration.

    Args:
        last: replaces the number of newest checkpoints to keep.

    Raises:
        CheckpointError: the configuration in the run's folder cannot be read.
    """
    path = folder / "config.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        retention = Settings.model_validate(values.get("checkpoint")).retention
    except (OSError, ValueError, AttributeError, yaml.YAMLError, ValidationError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({' '.join(str(error).split())}); restore the run's configuration"
        ) from error
    return retention if last is None else dataclasses.replace(retention, last=last)


def select_checkpoint(folder: Path, which: str | None) -> Checkpoint:
    """Open a checkpoint of a run.

    Args:
        which: the images seen, "best" (by `checkpoint.best`), or `None` for the newest good one.

    Raises:
        CheckpointError: it does not exist or is damaged; the message lists the existing ones.
    """
    if which is None:
        return newest(folder)
    entries = checkpoint.list_checkpoints(folder / "checkpoints", whole=False)
    possible = ", ".join(str(entry.images) for entry in entries if entry.problem is None) or "none"
    if which == "best":
        best = retention_of(folder).best
        if best is None:
            raise CheckpointError(
                f"{folder}: checkpoint.best is not set, so none is the best; choose one by its images seen: {possible}"
            )
        metrics = {e.images: checkpoint.snapshot_metrics(e.folder) for e in entries if e.problem is None}
        if (images := best.select(metrics)) is None:
            raise CheckpointError(
                f"{folder}: no checkpoint has the metric {best.metric}; choose one by its images seen: {possible}"
            )
        which = str(images)
    if not which.isdecimal() or int(which) not in {entry.images for entry in entries}:
        raise CheckpointError(f"{folder}: has no checkpoint {which!r}; possible: best, {possible}")
    return checkpoint.verify(folder / "checkpoints" / f"{int(which):012d}")


def weights_of(path: Path, which: str | None = None) -> AveragedWeights:
    """Read averaged weights.

    Args:
        path: a run, an exported model, a checkpoint, or an exported file.
        which: for a run: its checkpoint, see `select_checkpoint`.

    Raises:
        CheckpointError: there are none or they are damaged, or `which` is given for something other than a run.
    """
    is_run = not (path.is_file() or (path / WEIGHTS_FILE).is_file() or (path / MANIFEST_FILE).is_file())
    if which is not None and not is_run:
        raise CheckpointError(f"{path}: a single model, not a run with checkpoints to choose from; omit --checkpoint")
    if path.is_file() or (path / WEIGHTS_FILE).is_file():
        return read_weights(path if path.is_file() else path / WEIGHTS_FILE)
    return weights_of_checkpoint(
        checkpoint.verify(path) if (path / MANIFEST_FILE).is_file() else select_checkpoint(path, which)
    )


def config_of(text: str, device: str = "auto", folder: Path | None = None) -> Config:
    """Parse the configuration that a model was trained with, for use on this system.

    Args:
        text: the configuration, YAML.
        device: replaces the device of the training.
        folder: folder of the run or export, with copies of the files that the model needs (`mtgen.models.assets`).
    """
    values = legacy.upgrade(yaml.safe_load(text))
    if folder is not None:
        values = assets.with_copied_assets(values, folder)
    return validate({**values, "device": device, "precision": "fp32"})


def load_run(folder: Path, device: str = "auto", which: str | None = None) -> tuple[Model, int]:
    """Load averaged weights as a model; returns it and the images that it has seen.

    Args:
        folder, which: see `weights_of`.

    Raises:
        CheckpointError: there are none, they are damaged, or they are those of another version of mtgen.
    """
    weights = weights_of(folder, which)
    config = config_of(
        weights.config, device, weights.path.parent if weights.path.is_file() else weights.path.parent.parent
    )
    card = DatasetCard.model_validate(weights.card)
    device_here = resolve_device(config)
    networks = build(config, card)
    average = EMA([("generator", networks.generator), ("side", networks.side)], 0.0)
    tensors = weights.tensors
    if mismatched := [n for n, t in average.state().items() if n not in tensors or tensors[n].shape != t.shape]:
        more = f" (and {len(mismatched) - 1} others)" if len(mismatched) > 1 else ""
        raise CheckpointError(
            f"{weights.path}: parameter {mismatched[0]}{more} is missing or has another shape than in this version of "
            f"mtgen, {__version__}; use the version that trained it, or train again"
        )
    average.load(tensors)
    average.copy_to_live()
    return Model(networks, config, card, device_here), weights.images


def describe(folder: Path) -> dict[str, Any]:
    """Position, images seen, parameter counts and digests of a run's newest checkpoint.

    `digest` is the SHA-256 over all trained parameters, for comparing two runs that should be equal.
    """
    found = newest(folder)
    groups = {network: found.tensors(network) for network in ("generator", "discriminator")}
    parameters = {
        f"{network}/{name}": tensor
        for network, group in groups.items()
        for name, tensor in group.items()
        if name.startswith("parameter/")
    }
    state, config = found.state, config_of(found.config())
    return {
        "run": str(folder),
        "checkpoint": found.folder.name,
        "images": found.images,
        "position": state["images"],
        "of_images": config.train.images,
        "steps": state["steps"],
        "minutes": round(state["seconds"] / 60, 2),
        "tasks": ", ".join(config.task_settings()),
        "parameters_generator": sum(t.numel() for n, t in parameters.items() if n.startswith("generator/")),
        "parameters_discriminator": sum(t.numel() for n, t in parameters.items() if n.startswith("discriminator/")),
        "nonfinite_steps": {name: optimizer["skipped"] for name, optimizer in state["optimizers"].items()},
        "workers": state["workers"],
        "zero_stage": state["zero_stage"],
        "precision": state["precision"],
        "dataset": state["card"]["name"],
        "fingerprint": state["fingerprint"],
        "digest": tensor_digest(parameters),
        "digest_averaged": tensor_digest(found.tensors("ema")),
    }
