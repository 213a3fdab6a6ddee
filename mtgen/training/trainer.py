"""The training loop of one worker."""

import contextlib
from collections.abc import Iterable, Sequence

import torch

from mtgen.config import Config, value_at
from mtgen.errors import Unreachable, UserError
from mtgen.schema import Batch
from mtgen.training.callbacks.base import Callback
from mtgen.training.callbacks.checkpointing import Checkpointing
from mtgen.training.callbacks.guards import BadSampleGuard, DivergenceGuard
from mtgen.training.callbacks.metrics_logging import MetricsLogging
from mtgen.training.callbacks.snapshotting import Snapshotting
from mtgen.training.callbacks.stopping import CheckpointRequest, ResizeRequest, StopFile, TimeLimit
from mtgen.training.heartbeat import Heartbeat
from mtgen.training.interrupts import LOOK_AHEAD_STEPS, InterruptAgreement, StepFence
from mtgen.training.protocol import OUTCOME_FILE, Outcome, ReportCallback, SnapshotCallback, WorkerContext
from mtgen.training.row_exchange import RowExchange
from mtgen.training.run_setup import TrainingParts, set_up
from mtgen.training.schedules import learning_rate
from mtgen.training.step import frozen


class Trainer:
    """Alternates steps of the discriminator and the generator, and calls the callbacks.

    Args:
        parts: what the loop works with.
        callbacks: what happens beside the steps, in order; the same on all workers.
    """

    def __init__(self, parts: TrainingParts, callbacks: Sequence[Callback]) -> None:
        self.parts = parts
        self.callbacks = callbacks

    def run(self) -> Outcome:
        """Train until the run has seen all its images, or a callback or an error ends it; then end the callbacks."""
        parts, progress = self.parts, self.parts.progress
        if parts.logger is not None and progress.images == 0:
            parts.logger.first_batch(parts.samples)
        parts.timer.start(progress.images, parts.loader.waited)
        with InterruptAgreement(self._wants_interrupt, parts.worker.rank, parts.worker.world) as agreement:
            outcome = self._train(agreement)
        return _unless_unreachable(self._end(outcome or Outcome("finished", progress.images)))

    def _train(self, agreement: InterruptAgreement) -> Outcome | None:
        """Make steps until something ends the run; `None`: it has seen all its images."""
        parts, progress = self.parts, self.parts.progress
        fence = StepFence(parts.worker.device)
        self._look_ahead()
        outcome = None if progress.finished else self._interrupt()
        while outcome is None and not progress.finished:
            fence.wait()
            if agreement.due(progress.steps, data_end=self._look_ahead()):
                outcome = self._interrupt()
                agreement.reset()
            if outcome is None:
                self._step(next(parts.loader).to(parts.worker.device))
                fence.record()
                parts.heartbeat.step()
                outcome = _first(callback.on_step_end() for callback in self.callbacks)
        return outcome

    def _look_ahead(self) -> bool:
        """Wait for the data of the next steps; whether the step after the next is the first without."""
        config, progress = self.parts.config, self.parts.progress
        steps = min(LOOK_AHEAD_STEPS + 1, -(-(progress.total - progress.images) // config.batch_size))
        with self.parts.heartbeat.busy("waiting for data"):  # a slow store has its own time limit
            return self.parts.loader.look_ahead(steps) == LOOK_AHEAD_STEPS < steps

    def _wants_interrupt(self) -> bool:
        return any(callback.wants_interrupt() for callback in self.callbacks)

    def _interrupt(self) -> Outcome | None:
        """End training if any worker's data end; otherwise call the callbacks that any worker requests; collective."""
        parts = self.parts
        problem = parts.loader.error
        requests = [callback.wants_interrupt() for callback in self.callbacks]
        failed, *requested = parts.consensus.any_rank(problem is not None, *requests)
        if failed and (error := parts.consensus.first_error(problem)):
            return Outcome.failure(parts.progress.images, error)
        chosen = zip(self.callbacks, requested, strict=True)
        return _first(callback.on_interrupt() for callback, wanted in chosen if wanted)

    def _step(self, batch: Batch) -> None:
        """Train the discriminator, and the generator if the run has one, on this worker's part of a global batch."""
        parts, config, progress = self.parts, self.parts.config, self.parts.progress
        # Weightings may use random numbers: the same on every worker, and after every resume.
        torch.manual_seed(config.seed + progress.images)
        others = {"discriminator": parts.networks.generator, "generator": parts.networks.side}
        rates = {"discriminator": config.discriminator.learning_rate, "generator": config.generator.learning_rate}
        beta2 = value_at(config.train.beta2, progress.images, config.train.images)
        parts.augmentation.follow_schedule(progress.images, config.train.images)
        for name in ("discriminator", "generator") if config.generates else ("discriminator",):
            engine, other = parts.engines[name], others[name]
            engine.set_rates(learning_rate(config.train, rates[name], progress.images), beta2)
            with frozen(other):
                for begin in range(0, len(batch), config.micro_batch):
                    micro_batch = batch.rows(slice(begin, begin + config.micro_batch))
                    parts.means.add(f"loss_{name[0]}", engine.train(micro_batch, (other,)))
        progress.advance(config.batch_size)
        parts.ema.update(config.batch_size, progress.images)
        parts.augmentation.adapt(progress.steps, config.batch_size, parts.consensus.group)
        if parts.sample_log is not None:
            parts.sample_log.step(batch.position)

    def _end(self, outcome: Outcome) -> Outcome:
        """End the callbacks and the logs, and leave the outcome for the driver."""
        parts = self.parts
        with parts.heartbeat.busy("ending"):
            parts.loader.close()
            for callback in self.callbacks:
                outcome = callback.on_end(outcome)
            if parts.logger is not None:
                parts.logger.finish(outcome)
                outcome.write(parts.config.folder)
            for callback in self.callbacks:
                callback.close()
        return outcome


def _first(outcomes: Iterable[Outcome | None]) -> Outcome | None:
    """The first outcome that is not `None`; those after it are not computed."""
    return next((outcome for outcome in outcomes if outcome is not None), None)


def build_callbacks(parts: TrainingParts, snapshot: SnapshotCallback | None) -> list[Callback]:
    """All callbacks, in the order in which every worker calls them.

    - The guards are first: a run that has to fail is neither evaluated nor saved.
    - A row of metrics precedes the checkpoint of its step, which stores the sums since the last row.
    - A snapshot precedes the checkpoint of its step, which stores its metrics: retention keeps the best ones.
    - A stop precedes a resize: a run that is to end does not wait for more workers.
    """
    snapshotting = Snapshotting(parts, snapshot)
    checkpointing = Checkpointing(parts, snapshotting)
    exchange = RowExchange(parts)
    bad_samples = BadSampleGuard(parts, exchange)
    logging = MetricsLogging(parts, exchange, [bad_samples, checkpointing])
    return [
        DivergenceGuard(parts, logging),
        bad_samples,
        logging,
        snapshotting,
        checkpointing,
        StopFile(parts),
        TimeLimit(parts),
        CheckpointRequest(parts, checkpointing),
        ResizeRequest(parts, checkpointing),
    ]


def train(
    config: Config,
    worker: WorkerContext,
    snapshot: SnapshotCallback | None = None,
    report: ReportCallback | None = None,
) -> Outcome:
    """Train on this worker, inside an existing process group; an error of the user is an outcome, not an exception.

    Collective: an error of one worker ends all of them, with the same message.

    Raises:
        Unreachable: a store did not answer for `data.patience`; a checkpoint is written before.

    Args:
        snapshot: makes pictures and quick validation metrics, on the first worker; `None` for none.
        report: writes the run's report, on the first worker, after each snapshot and at the end; `None` for none.
    """
    if worker.is_first:
        with contextlib.suppress(OSError):  # of workers that were restarted; a read-only folder is reported later
            (config.folder / OUTCOME_FILE).unlink(missing_ok=True)
    with Heartbeat(config.folder, worker) as heartbeat:
        try:
            parts = set_up(config, worker, heartbeat, report)
            trainer = Trainer(parts, build_callbacks(parts, snapshot))
        except UserError as error:
            outcome = Outcome.failure(0, error)
        else:
            return trainer.run()
    if worker.is_first:
        outcome.write(config.folder)
    return _unless_unreachable(outcome)


def _unless_unreachable(outcome: Outcome) -> Outcome:
    """The outcome, unless it is that of a store that did not answer: then a later start may succeed.

    Raises:
        Unreachable: Ray restarts the workers, and Slurm requeues the job.
    """
    if outcome.exit_status == Unreachable.status:
        raise Unreachable(outcome.message)
    return outcome
