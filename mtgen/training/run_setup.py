"""Everything that a worker needs before its first step."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn, set_num_threads

from mtgen.balancing.gate import Gate
from mtgen.checkpointing import checkpoint
from mtgen.checkpointing.checkpoint import Checkpoint
from mtgen.config import Config, legacy
from mtgen.data.loader import Loader
from mtgen.data.mixture import Samples, card_texts
from mtgen.data.transform_spec import transform_spec_of
from mtgen.errors import DataError, TrainingError
from mtgen.models import assets
from mtgen.models.ema import EMA
from mtgen.models.model import Networks, build
from mtgen.tasks.base import SelfTrainingSettings
from mtgen.training.augment import AdaptiveAugmentation
from mtgen.training.batch_roles import prepare_roles
from mtgen.training.compiled import prepare_networks
from mtgen.training.consensus import Consensus
from mtgen.training.dataset import build_order, cache_shortage, keep_order, open_data
from mtgen.training.deepspeed_engine import Engine
from mtgen.training.discriminator_step import DiscriminatorStep
from mtgen.training.finetune import FineTuningReport, load_initial_weights
from mtgen.training.heartbeat import Heartbeat
from mtgen.training.progress import RunProgress
from mtgen.training.protocol import ReportCallback, Resize, WorkerContext
from mtgen.training.run_logger import RunLogger, warn
from mtgen.training.running_means import RunningMeans
from mtgen.training.sample_log import SampleLog, next_segment
from mtgen.training.schedules import learning_rate
from mtgen.training.state import TrainingState, check_compatible
from mtgen.training.steps import build_steps
from mtgen.training.teacher import Teacher
from mtgen.training.throughput_timer import ThroughputTimer


@dataclass(frozen=True)
class TrainingParts:
    """What the loop and its callbacks work with, on one worker.

    Attributes:
        samples: the data set to train on.
        engines: "discriminator" and "generator" -> the engine that trains it.
        gates: where gradients of several tasks meet, by name.
        augmentation: its probability, which may adapt.
        means: sums of losses since the last row of metrics.
        state: takes and restores what a checkpoint holds.
        logger: log, journal and alarms of the run; `None` on all workers but the first.
        sample_log: log of the positions that were trained on; `None` unless `train.log_samples`.
        warn: prints and logs a problem that does not stop the run; does nothing on all workers but the first.
    """

    config: Config
    worker: WorkerContext
    heartbeat: Heartbeat
    consensus: Consensus
    samples: Samples
    networks: Networks
    engines: dict[str, Engine]
    gates: dict[str, Gate]
    augmentation: AdaptiveAugmentation
    ema: EMA
    means: RunningMeans
    state: TrainingState
    progress: RunProgress
    timer: ThroughputTimer
    logger: RunLogger | None
    sample_log: SampleLog | None
    loader: Loader
    warn: Callable[[str], None]


def set_up(
    config: Config, worker: WorkerContext, heartbeat: Heartbeat, report: ReportCallback | None = None
) -> TrainingParts:
    """Build all parts of a training run, and resume from its newest checkpoint.

    Every line with `consensus` waits for all workers, as do the engines: no worker may skip one or change their order.
    An error of one worker is raised on all of them, so that none waits for a worker that has ended.

    Raises:
        UserError: the data, the configuration, a checkpoint or the run's folder is not usable.
    """
    set_num_threads(worker.threads)
    warn_once: Callable[[str], None] = partial(warn, config.folder) if worker.is_first else _ignore
    consensus = Consensus(config.data.patience)
    samples = _open_samples(config, worker, consensus)
    networks = consensus.run_collectively(lambda: build(config, samples.card))
    for _, network in named_networks(networks):
        network.to(worker.device)
    initial_weights = load_initial_weights(config, networks, samples.card, consensus, worker.is_first)
    augmentation = AdaptiveAugmentation(config.augment)
    engines, gates, d_step = _build_engines(config, worker, networks, augmentation)
    ema = EMA(named_networks(networks), config.train.ema_half_life)
    settings = [task.settings for task in networks.tasks]
    if any(own.self_training for own in settings if isinstance(own, SelfTrainingSettings)):
        d_step.teacher = Teacher(config, networks, ema)
    means = RunningMeans(consensus.group)
    state = TrainingState(config, samples, worker, consensus.group, engines, gates, ema, augmentation, means)
    # If a resize was requested, this start has completed it.
    consensus.run_collectively(lambda: Resize(config.folder).clear() if worker.is_first else None)
    progress, seconds = _resume(config, worker, consensus, samples, state, warn_once)
    hosts = consensus.gather(socket.gethostname())
    logger = consensus.run_collectively(
        lambda: _open_logger(config, worker, samples, networks, progress.images, initial_weights, report, hosts)
    )
    sample_log = _open_sample_log(config, worker, consensus, progress.images) if config.train.log_samples else None
    if problem := cache_shortage(config, samples, worker.world, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))):
        warn_once(problem)
    return TrainingParts(
        config=config,
        worker=worker,
        heartbeat=heartbeat,
        consensus=consensus,
        samples=samples,
        networks=networks,
        engines=engines,
        gates=gates,
        augmentation=augmentation,
        ema=ema,
        means=means,
        state=state,
        progress=progress,
        timer=ThroughputTimer(seconds),
        logger=logger,
        sample_log=sample_log,
        loader=_open_loader(config, worker, samples, networks, augmentation, progress.images),
        warn=warn_once,
    )


def _open_samples(config: Config, worker: WorkerContext, consensus: Consensus) -> Samples:
    """The samples to train on. One worker asks stores for `dataset.json`, and all check that they have the same data.

    Raises:
        DataError: the data cannot be read, or differ between workers.
    """
    read = consensus.run_collectively(lambda: card_texts(config.data) if worker.is_first else {})
    cards = consensus.broadcast(read)
    samples = consensus.run_collectively(lambda: open_data(config, cards))
    own = samples.fingerprint
    expected = consensus.broadcast(own)

    def compare() -> None:
        if own != expected:
            raise DataError(
                f"{samples.folder}: worker {worker.rank} has other data than worker 0; copy the data set to all nodes "
                "again, or index the store again with `mtgen shards index`"
            )

    consensus.run_collectively(compare)
    return samples


def named_networks(networks: Networks) -> list[tuple[str, nn.Module]]:
    """The trained networks by the prefix of their parameters' names in checkpoints."""
    return [("generator", networks.generator), ("side", networks.side)]


def _ignore(text: str) -> None:
    """A warning that only the first worker prints."""


def _build_engines(
    config: Config, worker: WorkerContext, networks: Networks, augmentation: AdaptiveAugmentation
) -> tuple[dict[str, Engine], dict[str, Gate], DiscriminatorStep]:
    """The engines of both steps, the gates in the steps, and the discriminator's step.

    DeepSpeed broadcasts the first worker's parameters.
    """
    prepare_networks(config, networks)
    d_step, g_step, gates = build_steps(config, networks, augmentation)
    backbone = config.discriminator.backbone
    engines = {
        "discriminator": Engine(
            config,
            d_step,
            networks.side,
            learning_rate(config.train, config.discriminator.learning_rate, 0),
            networks.side.parameter_groups(backbone.learning_rate_factor if backbone is not None else 0.0),
        ),
        "generator": Engine(
            config, g_step, networks.generator, learning_rate(config.train, config.generator.learning_rate, 0)
        ),
    }
    for name, gate in gates.items():  # the gradient norms that a gate reports are those of the global loss
        gate.gradient_factor = worker.world
        gate.images = config.micro_batch * worker.world
        gate.loss_scale = engines["discriminator" if name == "discriminator" else "generator"].optimizer.loss_scale
    return engines, gates, d_step


def _resume(
    config: Config,
    worker: WorkerContext,
    consensus: Consensus,
    samples: Samples,
    state: TrainingState,
    warn: Callable[[str], None],
) -> tuple[RunProgress, float]:
    """Restore the newest good checkpoint of the run, if there is one, which the first worker chooses for all.

    Returns:
        how far the run is, and how many seconds it has trained.
    """
    root, progress = config.folder / "checkpoints", RunProgress(config.train.images)
    chosen = consensus.run_collectively(lambda: checkpoint.latest(root, warn=warn) if worker.is_first else None)
    name = consensus.broadcast(chosen and chosen.folder.name)
    if name is None:
        return progress, 0.0

    def find() -> Checkpoint:
        verified = chosen or checkpoint.verify(root / name)
        keep_order(config, legacy.upgrade_facts(verified.state.get("order") or {}))
        return check_compatible(verified, config, samples)

    found = consensus.run_collectively(find)
    restored: dict[str, Any] = state.load_state_dict(found, warn)
    progress.images = restored["images"]
    progress.steps = restored["steps"]
    return progress, restored["seconds"]


def _open_logger(
    config: Config,
    worker: WorkerContext,
    samples: Samples,
    networks: Networks,
    images: int,
    initial_weights: FineTuningReport | None,
    report: ReportCallback | None,
    hosts: list[str],
) -> RunLogger | None:
    """The run's logger, on the first worker; also saves the configuration, now that the run is certain to use it.

    Raises:
        TrainingError: the run's folder cannot be written.
    """
    if not worker.is_first:
        return None
    try:
        (config.folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        assets.copy_assets(config, config.folder)
    except OSError as error:
        raise TrainingError(
            f"{config.folder}: cannot be written ({error.strerror}); free disk space or fix the folder's permissions, "
            "and start again"
        ) from error
    logger = RunLogger(config, samples, networks, worker, images, report, hosts)
    if initial_weights is not None:
        logger.print(*initial_weights.lines())
        logger.artifacts(0, [initial_weights.write(config.folder)])
    return logger


def _open_sample_log(config: Config, worker: WorkerContext, consensus: Consensus, images: int) -> SampleLog:
    """This worker's sample log, in the segment whose number the first worker chooses."""
    segment = consensus.broadcast(next_segment(config.folder))
    return consensus.run_collectively(lambda: SampleLog(config.folder, segment, worker.rank, images))


def _open_loader(
    config: Config,
    worker: WorkerContext,
    samples: Samples,
    networks: Networks,
    augmentation: AdaptiveAugmentation,
    images: int,
) -> Loader:
    """This worker's part of every global batch, from `images` on; it begins to decode at once."""
    return Loader(
        samples,
        transform_spec_of(config, worker.device, worker.decoding_threads),
        batch_size=config.batch_size,
        rank=worker.rank,
        world=worker.world,
        position=images,
        prefetch=config.data.prefetch,
        order=build_order(config, samples),
        prepare=prepare_roles(config, augmentation, boxes=networks.generator.canvas_spec.box_maps > 0),
    )
