"""Fine-tuning: a new run begins with another run's parameters."""

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
"""In the run's folder: what it began with."""
MAX_NAMES_SHOWN = 8
"""Names in a message; the record has all."""


@dataclass
class FineTuningReport:
    """What a run began with.

    Attributes:
        checkpoint: whose averaged parameters were taken.
        images: how many images these had seen.
        taken: how many parameters were taken.
        fresh: names of those that the checkpoint does not have: they are initialized as in any new run.
        unused: names of the checkpoint's that the run does not have.
        renamed: classes and mask classes that have another name now: a number's meaning changed.
    """

    checkpoint: str
    images: int
    taken: int
    fresh: list[str]
    unused: list[str]
    renamed: list[str]

    def lines(self) -> list[str]:
        """For the log: what was taken, and what was not."""
        lines = [
            f"starts from {self.checkpoint} ({self.images:,} images): {self.taken} parameters taken, averaged ones"
        ]
        for names, what in (
            (self.fresh, "are not in it and freshly initialized"),
            (self.unused, "of it are not used"),
            (self.renamed, "of its classes have another name now"),
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
        """The record, in the run's folder.

        Raises:
            TrainingError: it cannot be written.
        """
        path = folder / START_FILE
        try:
            path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise TrainingError(
                f"{path}: cannot be written ({error.strerror}); make room or mend the folder, and start again"
            ) from error
        return path


def load_initial_weights(
    config: Config, networks: Networks, card: DatasetCard, control: Consensus, first: bool
) -> FineTuningReport | None:
    """Load the averaged parameters of `train.init_from` into the networks; `None` where none is asked for or the run has a checkpoint.

    Averaged, since they are what `evaluate` and `sample` use: the new run begins as good as the old one was said to be. Optimizers,
    schedules and images seen begin anew. Collective: the first worker chooses the checkpoint for all.

    Raises:
        CheckpointError: there is no such run, its checkpoints are damaged, or a parameter is of another shape; names all of them.
    """
    if config.train.init_from is None or control.any_rank(any((config.folder / "checkpoints").glob("[0-9]*")))[0]:
        return None
    chosen = control.run_collectively(lambda: _found(config) if first else None)
    folder = control.broadcast(chosen and str(chosen.folder))
    found = control.run_collectively(lambda: chosen or checkpoint.verify(Path(folder)))
    return control.run_collectively(lambda: load(found, networks, card))


def _found(config: Config) -> Checkpoint:
    """The newest good checkpoint of the run that is to be started from; or the one that is named itself."""
    name = str(config.train.init_from)
    for folder in (Path(name), Path(config.runs) / name):
        if (folder / checkpoint.MANIFEST_FILE).is_file():
            return checkpoint.verify(folder.absolute())
        if found := checkpoint.latest(
            folder.absolute() / "checkpoints", warn=lambda text: print(f"warning: {text}", flush=True)
        ):
            return found
    known = sorted(path.parent.name for path in Path(config.runs).glob("*/checkpoints") if path.parent != config.folder)
    hint = suggest(Path(name).name, known) if known else f"there are no others in {Path(config.runs).absolute()}"
    raise CheckpointError(f"train.init_from={name}: no run with a checkpoint there; {hint}")


@torch.no_grad()
def load(found: Checkpoint, networks: Networks, card: DatasetCard) -> FineTuningReport:
    """Put a checkpoint's averaged parameters into networks, by name.

    Raises:
        CheckpointError: a parameter is of another shape; names all of them.
    """
    there = found.tensors("ema")
    here: dict[str, Tensor] = {
        f"{prefix}.{name}": parameter
        for prefix, network in (("generator", networks.generator), ("side", networks.side))
        for name, parameter in network.named_parameters()
    }
    both = [name for name in here if name in there]
    if wrong := [name for name in both if here[name].shape != there[name].shape]:
        shapes = ", ".join(f"{name} ({list(there[name].shape)} there, {list(here[name].shape)} here)" for name in wrong)
        raise CheckpointError(
            f"train.init_from: {len(wrong)} parameters of {found.folder} are of another shape: {shapes}; give this run the widths, "
            f"resolution, channels and settings that are in {found.folder / 'config.yaml'}, and data with as many classes"
        )
    for name in both:
        here[name].copy_(there[name])
    before = DatasetCard.model_validate(found.state["card"])
    return FineTuningReport(
        str(found.folder),
        found.images,
        len(both),
        [name for name in here if name not in there],
        [name for name in there if name not in here],
        _renamed(before.classes, card.classes) + _renamed(before.mask_classes, card.mask_classes),
    )


def _renamed(before: list[str], now: list[str]) -> list[str]:
    return [f"{old} (now {new})" for old, new in zip(before, now, strict=False) if old != new]
