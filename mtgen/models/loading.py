"""Runs and exported models on disk: find one by name, load its averaged weights as a model, describe its newest checkpoint."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mtgen.checkpointing import checkpoint
from mtgen.checkpointing.checkpoint import MANIFEST_FILE, WEIGHTS_FILE, AveragedWeights, Checkpoint
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
    """The folder of a run or an exported model, given as a path or as its name under `runs`.

    Raises:
        CheckpointError: there is no such run; the nearest name is suggested.
    """
    for folder in (Path(run), runs / run):
        if (folder / "checkpoints").is_dir() or (folder / WEIGHTS_FILE).is_file():
            return folder.absolute()
    known = sorted(p.parent.name for p in runs.glob("*/checkpoints"))
    hint = suggest(Path(run).name, known) if known else f"there are no runs in {runs.absolute()}"
    raise CheckpointError(f"{run}: no run with checkpoints there; {hint}")


def find_model(path: str | Path) -> Path:
    """As `find_run`; and one checkpoint, or an exported file, by its path."""
    return Path(path).absolute() if Path(path).is_file() or (Path(path) / MANIFEST_FILE).is_file() else find_run(path)


def newest(folder: Path) -> Checkpoint:
    """The newest good checkpoint of a run; damaged ones are named on standard error.

    Raises:
        CheckpointError: there is none.
    """
    found = checkpoint.latest(folder / "checkpoints", warn=lambda text: print(f"warning: {text}", file=sys.stderr))
    if found is None:
        exported = (folder / WEIGHTS_FILE).is_file()
        raise CheckpointError(
            f"{folder}: {'is an exported model; give the run that it is of' if exported else 'has no checkpoint yet'}"
        )
    return found


def retention_of(folder: Path, last: int | None = None) -> Retention:
    """Which of a run's checkpoints stay, as its configuration says.

    Args:
        last: another number of newest ones.

    Raises:
        CheckpointError: the configuration in the run's folder cannot be read.
    """
    path = folder / "config.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        kept = Settings.model_validate(values.get("checkpoint")).retention
    except (OSError, ValueError, AttributeError, yaml.YAMLError, ValidationError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({' '.join(str(error).split())}); bring the run's own configuration back"
        ) from error
    return kept if last is None else dataclasses.replace(kept, last=last)


def select_checkpoint(folder: Path, which: str | None) -> Checkpoint:
    """A run's newest good checkpoint (`None`), its best one by `checkpoint.best` ("best"), or the one at so many images seen.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged; those that there are, are named.
    """
    if which is None:
        return newest(folder)
    entries = checkpoint.list_checkpoints(folder / "checkpoints", whole=False)
    there = ", ".join(str(entry.images) for entry in entries if entry.problem is None) or "none"
    if which == "best":
        best = retention_of(folder).best
        if best is None:
            raise CheckpointError(
                f"{folder}: checkpoint.best is not set, so none is the best; give images seen instead: {there}"
            )
        good = {entry.images: checkpoint.snapshot_metrics(entry.folder) for entry in entries if entry.problem is None}
        if (found := best.select(good)) is None:
            raise CheckpointError(
                f"{folder}: {best.metric} was measured at none of its checkpoints; give images seen instead: {there}"
            )
        which = str(found)
    if not which.isdecimal() or int(which) not in {entry.images for entry in entries}:
        raise CheckpointError(f"{folder}: has no checkpoint {which!r}; possible: best, {there}")
    return checkpoint.verify(folder / "checkpoints" / f"{int(which):012d}")


def weights_of(path: Path, which: str | None = None) -> AveragedWeights:
    """The averaged weights of a run (of its checkpoint that `select_checkpoint` finds), an exported model, one checkpoint or an exported file.

    Raises:
        CheckpointError: there are none, or they are damaged; or a checkpoint is asked for where there is no run to choose from.
    """
    is_run = not (path.is_file() or (path / WEIGHTS_FILE).is_file() or (path / MANIFEST_FILE).is_file())
    if which is not None and not is_run:
        raise CheckpointError(
            f"{path}: is one model, not a run with checkpoints to choose from; leave --checkpoint out"
        )
    if path.is_file() or (path / WEIGHTS_FILE).is_file():
        return checkpoint.read_weights(path if path.is_file() else path / WEIGHTS_FILE)
    return checkpoint.weights(
        checkpoint.verify(path) if (path / MANIFEST_FILE).is_file() else select_checkpoint(path, which)
    )


def config_of(text: str, device: str = "auto", folder: Path | None = None) -> Config:
    """The configuration that a model was trained with, YAML, for use on this machine.

    Args:
        folder: of the run or the export, where copies of the files lie that the model needs (`mtgen.models.assets`).
    """
    values = legacy.upgrade(yaml.safe_load(text))
    if folder is not None:
        values = assets.with_copied_assets(values, folder)
    return validate({**values, "device": device, "precision": "fp32"})


def load_run(folder: Path, device: str = "auto", which: str | None = None) -> tuple[Model, int]:
    """Averaged weights, wherever `weights_of` finds them, as a model; and the images that it has seen.

    Raises:
        CheckpointError: there are none, they are damaged, or another version of mtgen wrote them.
    """
    found = weights_of(folder, which)
    config = config_of(found.config, device, found.path.parent if found.path.is_file() else found.path.parent.parent)
    card = DatasetCard.model_validate(found.card)
    networks = build(config, card)
    average = EMA([("generator", networks.generator), ("side", networks.side)], 0.0)
    expected = average.state()
    if wrong := [
        name
        for name, tensor in expected.items()
        if name not in found.tensors or found.tensors[name].shape != tensor.shape
    ]:
        more = f" (and {len(wrong) - 1} others)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"{found.path}: parameter {wrong[0]}{more} is not in it in the shape that this version of mtgen, {__version__}, has; "
            "use the version that trained it, or train again"
        )
    average.load(found.tensors)
    average.copy_to_live()
    return Model(networks, config, card, resolve_device(config)), found.images


def describe(folder: Path) -> dict[str, Any]:
    """Position, images seen, parameter counts and digests of a run's newest checkpoint.

    `digest` is the SHA-256 over all trained parameters: two runs that should be equal can be compared.
    """
    found = newest(folder)
    groups = {side: found.tensors(side) for side in ("generator", "discriminator")}
    parameters = {
        f"{side}/{name}": t
        for side, group in groups.items()
        for name, t in group.items()
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
        "nonfinite_steps": {side: kept["skipped"] for side, kept in state["optimizers"].items()},
        "workers": state["workers"],
        "zero_stage": state["zero_stage"],
        "precision": state["precision"],
        "dataset": state["card"]["name"],
        "fingerprint": state["fingerprint"],
        "digest": checkpoint.digest(parameters),
        "digest_averaged": checkpoint.digest(found.tensors("ema")),
    }
