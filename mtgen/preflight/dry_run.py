"""Trials before a run: everything up to the first step, two steps with everything, or overfitting a few samples."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mtgen.config import CONDITIONS, Config, DataConfig, Device, decide_here
from mtgen.data.dataset_card import read_card
from mtgen.data.loader import iterate_split
from mtgen.data.mixture import Samples, sources_of, split_of
from mtgen.data.transform_spec import transform_spec_of
from mtgen.data.validation import open_validation
from mtgen.models.model import build
from mtgen.preflight.cost import Cost, cost
from mtgen.schema import Batch
from mtgen.training.dataset import open_data
from mtgen.training.step import frozen
from mtgen.training.steps import build_steps

MAX_TIMED_FLOPS = 5e11
"""Most floating-point operations to time a step with: some seconds on one CPU."""
MAX_TIMED_IMAGES = 8
"""Most images to time a step with."""


@dataclass(frozen=True)
class DryRun:
    """What a run would start with.

    Attributes:
        train: samples to train on.
        validation: samples to validate on.
        test: samples of the test split; `None`: a data set has none, so that `mtgen evaluate` needs another.
        labelled: task or condition -> training samples with the labels that it needs.
        cost: parameters, operations, memory.
        state: bytes per worker of parameters, gradients, optimizer state and averaged weights.
        activations: bytes per worker of a micro-batch's activations.
        images_per_second: estimate for all workers from a step timed here; `None`: too large to time here.
    """

    train: int
    validation: int
    test: int | None
    labelled: dict[str, int]
    cost: Cost
    state: float
    activations: float
    images_per_second: float | None

    def hours(self, images: int) -> float | None:
        """Hours of training for `images` images, without startup, pictures and checkpoints; `None` if not timed."""
        return images / self.images_per_second / 3600 if self.images_per_second else None


def dry_run(config: Config) -> DryRun:
    """Do everything up to the first step: open and decode data, check tasks, build and count networks, time a step.

    Writes nothing but the index of the data set.

    Raises:
        UserError: the error with which the run would fail at its start.
    """
    config, device = decide_here(config)
    samples = open_data(config)
    found = cost(config, samples.card)
    rows = min(MAX_TIMED_IMAGES, config.micro_batch)
    batch = next(iter(iterate_split(samples, transform_spec_of(config), batch_size=rows, limit=rows)))
    workers = config.max_workers
    return DryRun(
        train=len(samples),
        validation=len(open_validation(config.data)),
        test=_count_test_samples(config.data),
        labelled=_count_labels(config, samples),
        cost=found,
        state=found.state_bytes(config.zero_stage, workers),
        activations=found.activations * config.micro_batch,
        images_per_second=_timed(config, device, samples, batch) if found.step * rows < MAX_TIMED_FLOPS else None,
    )


def _count_test_samples(data: DataConfig) -> int | None:
    """According to `dataset.json`; training does not read them."""
    splits = [read_card(source.path).splits.get(str(split_of(data, source, "test"))) for source in sources_of(data)]
    return None if None in splits else sum(split.samples for split in splits if split is not None)


def _count_labels(config: Config, samples: Samples) -> dict[str, int]:
    wanted = {f"tasks.{name}": settings.needs for name, settings in config.task_settings().items()}
    wanted |= {f"conditions.{name}": CONDITIONS[name].component for name in config.condition_settings()}
    return {key: int(samples.present[need].sum()) if need else len(samples) for key, need in wanted.items()}


def _timed(config: Config, device: Device, samples: Samples, batch: Batch) -> float:
    """Images per second of all workers, from the second of two steps in this process, without the optimizer."""
    networks = build(config, samples.card)
    for network in (networks.generator, networks.side):
        network.to(device)
    in_process = config.model_copy(update={"workers": 0, "batch_size": len(batch)})
    d_step, g_step, _ = build_steps(in_process, networks)
    steps = [(d_step, networks.generator), (g_step, networks.side)]
    here, seconds = batch.to(device), 0.0
    for _ in range(2):
        begin = time.monotonic()
        for step, other in steps if config.generates else steps[:1]:
            with frozen(other):
                step(here, (other,))[0].backward()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.monotonic() - begin
    # More workers on CPUs have fewer threads each.
    return len(batch) / seconds * (config.max_workers if device == "cuda" else 1)


def fast_dev_run(config: Config, runs: Path) -> Config:
    """The run cut to two steps in the folder `runs`, each with a journal row, a checkpoint, pictures and metrics."""
    batch = config.batch_size
    every: dict[str, Any] = {
        "runs": str(runs),
        "data": config.data.model_copy(update={"max_samples": min(config.data.max_samples or 10**9, 4 * batch)}),
        "train": config.train.model_copy(
            update={"images": 2 * batch, "log_every": batch, "max_restarts": 0, "max_minutes": None}
        ),
        "checkpoint": config.checkpoint.model_copy(update={"every": batch}),
        "evaluate": config.evaluate.model_copy(update={"every": batch}),
        "tracking": config.tracking.model_copy(update={"uri": f"sqlite:///{runs}/mlflow.db"}),
    }
    return config.model_copy(update=every)


def overfit(config: Config, samples: int) -> Config:
    """The run on its first `samples` training samples, also for validation and tests, without augmentation.

    It has a name of its own.
    """
    data = config.data
    mixture = [
        source.model_copy(update=dict.fromkeys(("val_split", "test_split"), source.train_split or data.train_split))
        for source in data.mixture
    ]
    changed = {
        "max_samples": samples,
        "val_split": data.train_split,
        "test_split": data.train_split,
        "mixture": mixture,
        "crop": 1.0,
        "flip": False,
        "color_jitter": 0.0,
    }
    return config.model_copy(
        update={
            "name": f"{config.name}-overfit-{samples}",
            "data": data.model_copy(update=changed),
            "augment": config.augment.model_copy(update={"probability": 0.0, "target": None}),
        }
    )
