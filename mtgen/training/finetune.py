"""Fine-tuning: a new run starts from another run's parameters."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from mtgen.checkpointing import checkpoint
from mtgen.checkpointing.checkpoint import Checkpoint
from mtgen.config import Config
from mtgen.errors import CheckpointError, TrainingError
from mtgen.models.model import Networks
from mtgen.registry import suggest
from mtgen.schema import DatasetCard
from mtgen.training.consensus import Consensus

START_FILE = "start.json"
"""In the run's folder: the report of what it started from."""
MAX_NAMES_SHOWN = 8
"""Names in a message; the file has all of them."""


@dataclass
class FineTuningReport:
    """What a run started from.

    Attributes:
        checkpoint: folder of the checkpoint whose averaged parameters were loaded.
        images: images that the checkpoint had seen.
        taken: number of parameters that were loaded.
        fresh: names of parameters that the checkpoint does not have; they are initialized as in any new run.
        unused: names of parameters that only the checkpoint has.
        renamed: classes and mask classes whose number has another name now.
    """

    checkpoint: str
    images: int
    taken: int
    fresh: list[str]
    unused: list[str]
    renamed: list[str]

    def lines(self) -> list[str]:
        """For the log: what was loaded, and what was not."""
        lines = [f"starts from {self.checkpoint} ({self.images:,} images): {self.taken} averaged parameters loaded"]
        for names, what in (
            (self.fresh, "parameters are not in it and freshly initialized"),
            (self.unused, "of its parameters are not used"),
            (self.renamed, "of its classes have other names now"),
        ):
            if names:
                more = (
                    f", and {len(names) - MAX_NAMES_SHOWN} more (all in {START_FILE})"
                    if len(names) > MAX_NAMES_SHOWN
                    else ""
                )
                lines.append(f"{len(names)} {what}: {', '.join(names[:MAX_NAMES_SHOWN])}{more}")
        return lines

    def write(self, folder: Path) -> Path:
        """Write the report into the run's folder, and return its path.

        Raises:
            TrainingError: the file cannot be written.
        """
        path = folder / START_FILE
        try:
            path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise TrainingError(
                f"{path}: cannot be written ({error.strerror}); free disk space or fix the folder's permissions, "
                "and start again"
            ) from error
        return path


def load_initial_weights(
    config: Config, networks: Networks, card: DatasetCard, consensus: Consensus, first: bool
) -> FineTuningReport | None:
    """Load the averaged parameters of `train.init_from` into the networks; `None` if there is nothing to load.

    A run that has a checkpoint resumes from that instead. Averaged parameters are what `evaluate` and `sample` use, so
    the new run starts with the quality that they measured. Optimizers, schedules and images seen start from scratch.
    Collective: the first worker chooses the checkpoint for all.

    Raises:
        CheckpointError: the run does not exist, all its checkpoints are damaged, or parameters have other shapes.
    """
    if config.train.init_from is None or consensus.any_rank(any((config.folder / "checkpoints").glob("[0-9]*")))[0]:
        return None
    chosen = consensus.run_collectively(lambda: _find_checkpoint(config) if first else None)
    folder = consensus.broadcast(chosen and str(chosen.folder))
    found = consensus.run_collectively(lambda: chosen or checkpoint.verify(Path(folder)))
    return consensus.run_collectively(lambda: load(found, networks, card))


def _find_checkpoint(config: Config) -> Checkpoint:
    """The checkpoint that `train.init_from` names, or the newest good one of the run that it names."""
    name = str(config.train.init_from)
    for folder in (Path(name), Path(config.runs) / name):
        if (folder / checkpoint.MANIFEST_FILE).is_file():
            return checkpoint.verify(folder.absolute())
        if found := checkpoint.latest(
            folder.absolute() / "checkpoints", warn=lambda text: print(f"warning: {text}", flush=True)
        ):
            return found
    known = sorted(path.parent.name for path in Path(config.runs).glob("*/checkpoints") if path.parent != config.folder)
    hint = suggest(Path(name).name, known) if known else f"{Path(config.runs).absolute()} has no other run"
    raise CheckpointError(f"train.init_from={name}: not a run with a checkpoint; {hint}")


@torch.no_grad()
def load(found: Checkpoint, networks: Networks, card: DatasetCard) -> FineTuningReport:
    """Load a checkpoint's averaged parameters into the networks, by name.

    Raises:
        CheckpointError: parameters have other shapes; it names all of them.
    """
    there = found.tensors("ema")
    here: dict[str, Tensor] = {
        f"{prefix}.{name}": parameter
        for prefix, network in (("generator", networks.generator), ("side", networks.side))
        for name, parameter in network.named_parameters()
    }
    common = [name for name in here if name in there]
    if wrong := [name for name in common if here[name].shape != there[name].shape]:
        shapes = ", ".join(f"{name} ({list(there[name].shape)} there, {list(here[name].shape)} here)" for name in wrong)
        raise CheckpointError(
            f"train.init_from: {len(wrong)} parameters of {found.folder} have other shapes: {shapes}; use the widths, "
            f"resolution, channels and settings in {found.folder / 'config.yaml'}, and data with as many classes"
        )
    for name in common:
        here[name].copy_(there[name])
    before = DatasetCard.model_validate(found.state["card"])
    return FineTuningReport(
        str(found.folder),
        found.images,
        len(common),
        [name for name in here if name not in there],
        [name for name in there if name not in here],
        _renamed(before.classes, card.classes) + _renamed(before.mask_classes, card.mask_classes),
    )


def _renamed(before: list[str], now: list[str]) -> list[str]:
    return [f"{old} (now {new})" for old, new in zip(before, now, strict=False) if old != new]
