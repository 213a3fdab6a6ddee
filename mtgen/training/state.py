"""All that a training is at one moment: taken down for a checkpoint, and taken back from one."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from mtgen.balancing.factory import gates_state_dict, load_gates_state_dict
from mtgen.balancing.gate import Gate
from mtgen.checkpointing.checkpoint import Checkpoint
from mtgen.config import Config, legacy
from mtgen.data.mixture import Samples
from mtgen.errors import CheckpointError
from mtgen.models.ema import EMA
from mtgen.training.augment import AdaptiveAugmentation
from mtgen.training.dataset import order_facts
from mtgen.training.deepspeed_engine import Engine
from mtgen.training.protocol import WorkerContext
from mtgen.training.running_means import RunningMeans


class TrainingState:
    """The parts of a training that change as it learns, beside the count of images.

    Args:
        group: process group on the CPU.
    """

    def __init__(
        self,
        config: Config,
        samples: Samples,
        place: WorkerContext,
        group: Any,
        *,
        engines: dict[str, Engine],
        gates: dict[str, Gate],
        average: EMA,
        strength: AdaptiveAugmentation,
        meter: RunningMeans,
    ) -> None:
        self.config = config
        self.samples = samples
        self.place = place
        self.group = group
        self.engines = engines
        self.gates = gates
        self.average = average
        self.strength = strength
        self.meter = meter

    def state_dict(self, progress: dict[str, Any]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """Tensors by what they belong to, copied, and all else as JSON; on the first worker, `None` on the others. Collective.

        Args:
            progress: how far the run is: what `put` gives back.
        """
        first = self.place.rank == 0
        tensors = {side: engine.state(keep=first) for side, engine in self.engines.items()}
        augmentation, counted = self.strength.state(self.group), self.meter.state()
        if not first:
            return None
        tensors["ema"] = self.average.state()
        tensors["balancing"], about_gates = gates_state_dict(self.gates)
        return tensors, {
            **progress,
            "workers": self.place.world,
            "zero_stage": self.config.zero_stage,
            "precision": self.config.precision,
            "fingerprint": self.samples.fingerprint,
            "order": order_facts(self.config, self.samples),
            "card": self.samples.card.model_dump(mode="json"),
            "augmentation": augmentation,
            "balancing": about_gates,
            "since_last_row": {
                "losses": counted,
                "gates": {name: gate.record.state() for name, gate in self.gates.items()},
            },
            "optimizers": {
                side: {"steps": e.steps_taken, **e.optimizer.counters()} for side, e in self.engines.items()
            },
        }

    def load_state_dict(self, found: Checkpoint, warn: Callable[[str], None]) -> dict[str, Any]:
        """Take back what a checkpoint holds; how far the run was.

        Raises:
            CheckpointError: the network was changed since.
        """
        state = found.state
        for side, engine in self.engines.items():
            kept = dict(state["optimizers"][side])
            engine.load(found.tensors(side), kept.pop("steps"), kept)
        self.strength.load(state["augmentation"], self.place.rank == 0)
        self.average.load(found.tensors("ema"))
        fresh = (
            load_gates_state_dict(self.gates, found.tensors("balancing"), state["balancing"])
            if "balancing" in state
            else []
        )
        for gate in fresh:
            warn(f"the gate at {gate} begins anew: its tasks or weighting are others than in {found.folder.name}")
        if row := state.get("since_last_row"):
            self.meter.load(row["losses"])
            for name in self.gates.keys() - fresh:
                self.gates[name].record.load(row["gates"][name])
        return {name: state[name] for name in ("images", "steps", "seconds")}


def check_compatible(found: Checkpoint, config: Config, samples: Samples) -> Checkpoint:
    """`found`, if it was trained on the samples that the run has.

    Raises:
        CheckpointError: on others, in another order, or with captions read by other files.
    """
    before, now = found.state["fingerprint"], samples.fingerprint
    if before != now:
        raise CheckpointError(
            f"{found.folder}: was trained on other data than data.path={samples.folder} holds now "
            f"(fingerprint {before[:12]}, now {now[:12]}); give the run another name, or the old shards back"
        )
    ordered, wanted = legacy.upgrade_facts(found.state.get("order") or {}), order_facts(config, samples)
    changed = (
        [f"{key}={ordered.get(key)} then, {wanted[key]} now" for key in wanted if ordered.get(key) != wanted[key]]
        if ordered
        else []
    )
    if changed:
        raise CheckpointError(
            f"{found.folder}: was trained with its samples in another order, or its captions read by other files "
            f"({'; '.join(changed)}); give the run another name, or the old values back"
        )
    return found
