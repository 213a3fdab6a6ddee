"""The whole state of a training: saved in a checkpoint, and restored from one."""

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
    """Everything that changes during training, except how far the run is.

    Args:
        group: process group on the CPU.
    """

    def __init__(
        self,
        config: Config,
        samples: Samples,
        worker: WorkerContext,
        group: Any,
        engines: dict[str, Engine],
        gates: dict[str, Gate],
        ema: EMA,
        augmentation: AdaptiveAugmentation,
        means: RunningMeans,
    ) -> None:
        self.config = config
        self.samples = samples
        self.worker = worker
        self.group = group
        self.engines = engines
        self.gates = gates
        self.ema = ema
        self.augmentation = augmentation
        self.means = means

    def state_dict(self, progress: dict[str, Any]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """Copies of all tensors by file, and the rest as JSON; `None` on all workers but the first. Collective.

        Args:
            progress: how far the run is ("images", "steps", "seconds"); `load_state_dict` returns it.
        """
        keep = self.worker.is_first
        tensors = {name: engine.state(keep=keep) for name, engine in self.engines.items()}
        augmentation, means = self.augmentation.state(self.group), self.means.state()
        if not keep:
            return None
        tensors["ema"] = self.ema.state()
        tensors["balancing"], gates = gates_state_dict(self.gates)
        return tensors, {
            **progress,
            "workers": self.worker.world,
            "zero_stage": self.config.zero_stage,
            "precision": self.config.precision,
            "fingerprint": self.samples.fingerprint,
            "order": order_facts(self.config, self.samples),
            "card": self.samples.card.model_dump(mode="json"),
            "augmentation": augmentation,
            "balancing": gates,
            "since_last_row": {
                "losses": means,
                "gates": {name: gate.statistics.state() for name, gate in self.gates.items()},
            },
            "optimizers": {
                name: {"steps": engine.steps_taken, **engine.optimizer.counters()}
                for name, engine in self.engines.items()
            },
        }

    def load_state_dict(self, found: Checkpoint, warn: Callable[[str], None]) -> dict[str, Any]:
        """Restore the state of a checkpoint; returns how far the run was.

        Raises:
            CheckpointError: the network was changed since.
        """
        state = found.state
        for name, engine in self.engines.items():
            counters = dict(state["optimizers"][name])
            engine.load(found.tensors(name), counters.pop("steps"), counters)
        self.augmentation.load(state["augmentation"], self.worker.is_first)
        self.ema.load(found.tensors("ema"))
        fresh = (
            load_gates_state_dict(self.gates, found.tensors("balancing"), state["balancing"])
            if "balancing" in state
            else []
        )
        for gate in fresh:
            warn(
                f"the state of the gate at {gate} starts from scratch: its tasks or its weighting differ from those in "
                f"{found.folder.name}"
            )
        if row := state.get("since_last_row"):
            self.means.load(row["losses"])
            for name in self.gates.keys() - fresh:
                self.gates[name].statistics.load(row["gates"][name])
        return {name: state[name] for name in ("images", "steps", "seconds")}


def check_compatible(found: Checkpoint, config: Config, samples: Samples) -> Checkpoint:
    """Return `found` if it was trained on the samples that the run has now.

    Raises:
        CheckpointError: the samples, their order, or the files of a tokenizer, encoder or backbone are different.
    """
    before, now = found.state["fingerprint"], samples.fingerprint
    if before != now:
        raise CheckpointError(
            f"{found.folder}: was trained on different data than data.path={samples.folder} holds now "
            f"(fingerprint {before[:12]}, now {now[:12]}); choose another name for the run, "
            "or restore the original shards"
        )
    ordered, wanted = legacy.upgrade_facts(found.state.get("order") or {}), order_facts(config, samples)
    changed = (
        [f"{key}={ordered.get(key)} then, {wanted[key]} now" for key in wanted if ordered.get(key) != wanted[key]]
        if ordered
        else []
    )
    if changed:
        raise CheckpointError(
            f"{found.folder}: was trained with another order of samples, or other files that encode captions or images "
            f"({'; '.join(changed)}); choose another name for the run, or restore the original values"
        )
    return found
