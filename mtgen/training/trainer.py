"""One worker's training, from the first batch to the last checkpoint."""

import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mtgen.balancing.conflicts import write_artifacts
from mtgen.checkpointing import checkpoint
from mtgen.checkpointing.async_writer import CheckpointWriter
from mtgen.checkpointing.mirror import CheckpointStore, Mirror
from mtgen.config import Config
from mtgen.data.loader import Loader
from mtgen.data.transform_spec import transform_spec_of
from mtgen.errors import DataError, TrainingError, UserError
from mtgen.models import assets
from mtgen.models.ema import EMA
from mtgen.models.model import Model, Networks, build
from mtgen.schema import Batch
from mtgen.training.augment import AdaptiveAugmentation
from mtgen.training.bad_samples import DamageLog
from mtgen.training.consensus import Consensus
from mtgen.training.dataset import build_order, open_data
from mtgen.training.deepspeed_engine import Engine
from mtgen.training.finetune import load_initial_weights
from mtgen.training.heartbeat import Heartbeat
from mtgen.training.lr_schedule import lr_factor
from mtgen.training.protocol import STOP_FILE, Outcome, ReportCallback, Resize, SnapshotCallback, WorkerContext
from mtgen.training.run_logger import RunLogger, warn
from mtgen.training.running_means import RunningMeans
from mtgen.training.sample_log import SampleLog, next_segment
from mtgen.training.state import TrainingState, check_compatible
from mtgen.training.steps import build_steps, frozen


class Trainer:
    """Networks, engines, data and records of one worker.

    Args:
        config: of the run, with absolute paths.
        place: where this worker stands.
        pulse: tells the driver that this worker lives.
        snapshot: makes the pictures and quick test metrics, on rank 0; `None` for none.
        report: writes the run's page anew, on rank 0, after each snapshot and at the end; `None` for none.

    Attributes:
        images: samples consumed since the start of the run, over all workers; also the position in the order.
    """

    def __init__(
        self,
        config: Config,
        place: WorkerContext,
        pulse: Heartbeat,
        snapshot: SnapshotCallback | None = None,
        report: ReportCallback | None = None,
    ) -> None:
        self.config = config
        self.place = place
        self.pulse = pulse
        self.snapshot = snapshot
        self.report = report
        self.folder = config.folder
        self.resize = Resize(config.folder)
        torch.set_num_threads(place.threads)
        self.control = Consensus()
        self.meter = RunningMeans(self.control.group)
        self.index = self.control.run_collectively(lambda: open_data(config))
        self.networks: Networks = self.control.run_collectively(lambda: build(config, self.index.card))
        for network in (self.networks.generator, self.networks.side):
            network.to(place.device)
        self.began = load_initial_weights(config, self.networks, self.index.card, self.control, place.rank == 0)
        self._engines()
        self.average = EMA(
            [("generator", self.networks.generator), ("side", self.networks.side)], config.train.ema_half_life
        )
        self.images = 0
        self.steps = 0
        self.seconds = 0.0
        self.state = TrainingState(
            config,
            self.index,
            place,
            self.control.group,
            engines=self.engines,
            gates=self.gates,
            average=self.average,
            strength=self.strength,
            meter=self.meter,
        )
        self.control.run_collectively(lambda: self.resize.clear() if place.rank == 0 else None)  # it has been done
        self._resume()
        self.records: RunLogger | None = self.control.run_collectively(self._records)
        self.loader = Loader(
            self.index,
            transform_spec_of(config, place.device, place.decoding_threads),
            batch_size=config.batch_size,
            rank=place.rank,
            world=place.world,
            position=self.images,
            prefetch=config.data.prefetch,
            order=build_order(config, self.index),
        )
        self.samples = self._sample_log()
        self.damage = DamageLog(self.folder, config.data.damage_limit, self.index.folder, self.control.group)
        self._named = 0
        self._resumed_at = self.images
        self.mirror = self._mirror()
        self.writer = CheckpointWriter(self._on_checkpoint_written)
        self._stall = 0.0
        self._measured = (-1, dict[str, float]())
        self._resizing = False

    def _records(self) -> RunLogger | None:
        """The run's records, on rank 0; its configuration is written down here, where it is sure that the run goes on with it."""
        if self.place.rank != 0:
            return None
        try:
            (self.folder / "config.yaml").write_text(self.config.to_yaml(), encoding="utf-8")
            assets.copy_assets(self.config, self.folder)
        except OSError as error:
            raise TrainingError(
                f"{self.folder}: cannot be written ({error.strerror}); make room or mend the folder, and start again"
            ) from error
        records = RunLogger(self.config, self.index, self.networks, self.place, self.images)
        if self.began is not None:
            records.say(*self.began.lines())
            records.artifacts(0, [self.began.write(self.folder)])
        return records

    def _sample_log(self) -> SampleLog | None:
        """What writes down the positions that are trained on, where that is asked for."""
        if not self.config.train.log_samples:
            return None
        part = self.control.broadcast(next_segment(self.folder))
        return self.control.run_collectively(lambda: SampleLog(self.folder, part, self.place.rank, self.images))

    def _mirror(self) -> Mirror | None:
        """What copies the checkpoints elsewhere, on rank 0 of a run that has such a place."""
        settings = self.config.checkpoint
        if self.place.rank != 0 or settings.mirror is None:
            return None
        mirror = Mirror(
            CheckpointStore(settings.mirror, self.config.name),
            self.folder / "checkpoints",
            settings.retention,
            self._warn,
        )
        mirror.notify()  # there may be checkpoints that could not be copied before
        return mirror

    def _engines(self) -> None:
        config, networks = self.config, self.networks
        self.strength = AdaptiveAugmentation(config.augment)
        d_step, g_step, self.gates = build_steps(config, networks, self.strength)
        self.engines = {
            "discriminator": Engine(config, d_step, networks.side, config.discriminator.learning_rate),
            "generator": Engine(config, g_step, networks.generator, config.generator.learning_rate),
        }
        for name, gate in self.gates.items():  # the norms it reports are those of the global loss
            gate.share, gate.images = self.place.world, self.config.micro_batch * self.place.world
            gate.loss_scale = self.engines[
                "discriminator" if name == "discriminator" else "generator"
            ].optimizer.loss_scale

    def _warn(self, text: str) -> None:
        """What went wrong and does not stop the run, said by the first worker."""
        if self.place.rank == 0:
            warn(self.folder, text)

    def _on_checkpoint_written(self, folder: Path, seconds: float) -> None:
        """A checkpoint is whole: from the thread that wrote it."""
        if self.records is not None:
            self.records.checkpoint(folder, seconds)
        if self.mirror is not None:
            self.mirror.notify()

    def step(self, batch: Batch) -> None:
        """One D-step, and one G-step where a generator is trained, over this worker's part of a global batch."""
        torch.manual_seed(
            self.config.seed + self.images
        )  # weightings may draw at random: the same on every worker, after every resume
        factor, micro = lr_factor(self.config.train, self.images), self.config.micro_batch
        networks = self.networks
        sides = [("discriminator", networks.generator), ("generator", networks.side)]
        for side, other in sides if self.config.generates else sides[:1]:
            engine = self.engines[side]
            engine.set_lr_factor(factor)
            with frozen(other):
                for begin in range(0, len(batch), micro):
                    self.meter.add(f"loss_{side[0]}", engine.train(batch.rows(slice(begin, begin + micro)), (other,)))
        self.images += self.config.batch_size
        self.steps += 1
        self.average.update(self.config.batch_size, self.images)
        self.strength.adapt(self.steps, self.config.batch_size, self.control.group)
        if self.samples is not None:
            self.samples.step(batch.position)

    def run(self) -> Outcome:
        """Train until the images are seen, the minutes are over, or somebody asks to stop; always ends with a checkpoint."""
        outcome: Outcome | None = None
        if self.records is not None and self.images == 0:
            self.records.first_batch(self.index)
        self._begin_clock()
        saved = self.images
        while outcome is None:
            batch, problem = self._next()
            outcome = self._agreed_outcome(problem)
            if outcome is None and self._resizing:
                outcome, saved = self._wait_for_resize(saved), self.images
            if outcome is None and batch is not None:
                before = self.images
                self.step(batch)
                self.pulse.step()
                outcome = self._periodic(before)
                if (
                    _passed(self.config.checkpoint.every, before, self.images)
                    and outcome is None
                    and self.images < self.config.train.images
                ):
                    self._save()
                    saved = self.images
        if outcome.status == "out of time" and self._measured[0] != self.images:
            self._snapshot()  # what the time was enough for
        with self.pulse.busy("ending"):
            return self._end(outcome, saved)

    def _end(self, outcome: Outcome, saved: int) -> Outcome:
        """The last checkpoint, waited for, unless there is one at these images; the end of the records."""
        self.loader.close()
        if diverged := self._diverged():  # nothing to go on from, so it is not saved
            outcome = outcome if outcome.status == "failed" else self._failed(diverged)
        elif saved != self.images:
            self._save()
        problem = self.control.first_error(self.writer.problem(wait=True))
        if problem is not None and outcome.status != "failed":
            outcome = self._failed(problem)
        self.writer.close()
        self._finish(outcome)
        if self.mirror is not None:
            self.mirror.close()
        return outcome

    def _next(self) -> tuple[Batch | None, UserError | None]:
        if self.images >= self.config.train.images:
            return None, None
        try:
            with self.pulse.busy("waiting for data"):  # a store that does not answer has a time limit of its own
                return next(self.loader).to(self.place.device), None
        except DataError as error:
            return None, error

    def _agreed_outcome(self, problem: UserError | None) -> Outcome | None:
        """What all workers do next; `None`: go on."""
        first = self.place.rank == 0
        if self.images >= self.config.train.images:
            return Outcome("finished", self.images)
        problem = problem or self.writer.problem()
        minutes = self.config.train.max_minutes
        failed, stop, late, self._resizing = self.control.any_rank(
            problem is not None,
            first and (self.folder / STOP_FILE).exists(),
            first and minutes is not None and self._elapsed() >= 60 * minutes,
            first and self.config.elastic is not None and self.resize.asked(),
        )
        if failed:
            return self._failed(self.control.first_error(problem))
        if stop:
            return Outcome("stopped", self.images)
        return Outcome("out of time", self.images, f"train.max_minutes={minutes} are over") if late else None

    def _wait_for_resize(self, saved: int) -> Outcome | None:
        """A checkpoint, and then waiting for Ray Train to start this run's workers anew, more of them; `None`: it was called off."""
        with self.pulse.busy("waiting for more workers"):
            if saved != self.images:
                self._save()
            if problem := self.control.first_error(self.writer.problem(wait=True)):
                return self._failed(problem)
            if self.place.rank == 0:
                self.resize.ready()
            while self.resize.asked() and not (self.folder / STOP_FILE).exists():
                time.sleep(0.2)
        return None

    def _failed(self, problem: UserError | None) -> Outcome:
        return Outcome("failed", self.images, str(problem), problem.status if problem else 1)

    def _periodic(self, before: int) -> Outcome | None:
        """Numbers, pictures and the check for a diverged run, when their images have been seen."""
        config = self.config
        if self.steps % 8 == 0 and (problem := self._diverged()):
            self._log()  # with what the alarms see in it
            return self._failed(problem)
        last = self.images >= config.train.images
        if _passed(config.train.log_every, before, self.images) or last:
            if problem := self._count_damage():
                return self._failed(problem)
            self._log()
        if _passed(config.evaluate.every, before, self.images) or last:
            self._snapshot()
        return None

    def _count_damage(self) -> UserError | None:
        """Count and name the damaged samples since the last call; the error that all workers end with when they are too many."""
        found, self._named = self.loader.damaged[self._named :], len(self.loader.damaged)
        lines, problem = self.damage.count(found, self.images - self._resumed_at)
        for line in lines:
            self._warn(line)
        if lines and self.records is not None:
            self.records.artifacts(self.images, [self.damage.path])
        return problem

    def _diverged(self) -> UserError | None:
        """Too many steps in a row with a non-finite gradient; the guard's counters are the same on all workers."""
        limit = self.config.train.nonfinite_limit
        for side, engine in self.engines.items():
            if engine.optimizer.in_a_row.item() >= limit:
                tasks = list(dict.fromkeys(task for gate in self.gates.values() for task in gate.record.nonfinite()))
                named = f", first in the gradients of {', '.join(tasks)}" if tasks else ""
                return TrainingError(
                    f"{limit} steps in a row had a non-finite gradient in the {side} (train.nonfinite_limit){named}; none was applied. "
                    f"Lower {side}.learning_rate or raise tasks.generation.gamma, and start again: "
                    f"it goes on from the last checkpoint under {self.folder / 'checkpoints'}"
                )
        return None

    def _begin_clock(self) -> None:
        self._started = self._last_time = time.monotonic()
        self._last_images, self._last_waited = self.images, self.loader.waited

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self._started

    def _log(self) -> None:
        """One row of numbers against images seen: means over the steps since the last row, over all workers."""
        numbers = self.meter.read(self._keys())
        now = time.monotonic()
        seconds, images = now - self._last_time, self.images - self._last_images
        waited = self.loader.waited - self._last_waited
        self._last_time, self._last_images, self._last_waited = now, self.images, self.loader.waited
        if self.records is None:
            return
        for side, engine in self.engines.items():
            numbers[f"loss/{side[0]}"] = sum(
                value for name, value in numbers.items() if name.startswith(f"loss_{side[0]}/")
            )
            optimizer = engine.optimizer
            numbers[f"gradient/{side}_norm"] = optimizer.norm.item()
            numbers[f"gradient/{side}_nonfinite_steps"] = optimizer.skipped.item()
            numbers[f"gradient/{side}_cut_steps"] = optimizer.cut.item()
            if optimizer.loss_scale is not None:
                numbers[f"gradient/{side}_loss_scale"] = optimizer.loss_scale.item()
        for name, gate in self.gates.items():
            numbers |= {f"balancing_{name}/{key}": value for key, value in gate.report().items()}
        numbers["speed/images_per_second"] = images / max(seconds, 1e-9)
        numbers["speed/data_wait_share"] = waited / max(seconds, 1e-9)
        if self.config.augment.target is not None:
            numbers["augmentation/probability"], numbers["augmentation/preference"] = (
                self.strength.probability,
                self.strength.preference,
            )
        numbers |= self.damage.numbers()
        numbers["learning_rate/factor"] = lr_factor(self.config.train, self.images)
        if self.writer.seconds:
            numbers |= {"checkpoint/stall_seconds": self._stall, "checkpoint/write_seconds": self.writer.seconds}
        self.records.numbers(self.images, numbers)

    def _keys(self) -> list[str]:
        """Names of all numbers that any worker has counted; collective."""
        mine: list[Any] = [None] * self.place.world
        dist.all_gather_object(mine, sorted(self.meter.sums), group=self.control.group)
        return sorted({key for keys in mine for key in keys})

    def model(self) -> Model:
        """The averaged weights as a model of their own."""
        networks = build(self.config, self.index.card)
        target = EMA([("generator", networks.generator), ("side", networks.side)], 0.0)
        target.average = self.average.average
        target.copy_to_live()
        return Model(networks, self.config, self.index.card, self.place.device)

    def _snapshot(self) -> None:
        """Pictures and quick test metrics, on rank 0; its time counts for no speed."""
        begin = time.monotonic()
        self._measured = self.images, dict[str, float]()
        if self.records is not None and self.snapshot is not None:
            self.records.phase(self.images, "evaluating")
            try:
                with self.pulse.busy("evaluating"):
                    numbers, pictures = self.snapshot(self.model(), self.images)
                self._measured = self.images, {name: value for name, value in numbers.items() if math.isfinite(value)}
                self.records.evaluation(self.images, numbers, time.monotonic() - begin)
                self.records.artifacts(self.images, pictures, "samples")
                self.records.artifacts(self.images, write_artifacts(self.folder), "balancing")
            except (UserError, OSError) as error:  # a damaged test sample, a full disk: no reason to lose the training
                self._warn(f"no pictures and test metrics of {self.images:,} images: {error}")
            self.records.phase(self.images, "")
            self._write_report()
        dist.barrier(group=self.control.group)
        self._last_time += time.monotonic() - begin

    def _save(self) -> None:
        """A checkpoint of what is copied here, written while training goes on; what that meets is known at a later step.

        The time that training stands still for it counts for no speed.
        """
        with self.pulse.busy("writing a checkpoint"):
            self._begin_save()

    def _begin_save(self) -> None:
        begin, settings = time.monotonic(), self.config.checkpoint
        if taken := self.state.state_dict({"images": self.images, "steps": self.steps, "seconds": self._elapsed()}):
            tensors, state = taken
            state[checkpoint.METRICS_KEY] = self._measured[1] if self._measured[0] == self.images else {}
            self.writer.begin(
                self.folder / "checkpoints", self.images, tensors, state, self.config.to_yaml(), settings.retention
            )
        self._stall = time.monotonic() - begin
        self._last_time += self._stall

    def _resume(self) -> None:
        """Take back the newest good checkpoint of this run's folder, if there is one: the first worker chooses it for all."""
        root, first = self.folder / "checkpoints", self.place.rank == 0
        chosen = self.control.run_collectively(lambda: checkpoint.latest(root, warn=self._warn) if first else None)
        name = self.control.broadcast(chosen and chosen.folder.name)
        if name is None:
            return
        found = self.control.run_collectively(
            lambda: check_compatible(chosen or checkpoint.verify(root / name), self.config, self.index)
        )
        progress = self.state.load_state_dict(found, self._warn)
        self.images, self.steps, self.seconds = progress["images"], progress["steps"], progress["seconds"]

    def _finish(self, outcome: Outcome) -> None:
        if self.records is None:
            return
        self.records.finish(outcome)
        self._write_report()
        outcome.write(self.folder)

    def _write_report(self) -> None:
        if self.report is not None:
            self.report(self.folder)


def _passed(every: int, before: int, after: int) -> bool:
    """Whether a multiple of `every` images lies in (before, after]."""
    return before // every != after // every


def train(
    config: Config, place: WorkerContext, snapshot: SnapshotCallback | None = None, report: ReportCallback | None = None
) -> Outcome:
    """Train on this worker, inside a process group that exists already; an error of the user's is an outcome, not an exception.

    Collective: what one worker finds wrong at the start (data, checkpoint) ends all of them with the same message.
    """
    problem: UserError | None = None
    with Heartbeat(config.folder, place) as pulse:
        try:
            trainer = Trainer(config, place, pulse, snapshot, report)
        except UserError as error:
            problem = error
        else:
            return trainer.run()
    outcome = Outcome("failed", 0, str(problem), problem.status if problem else 1)
    if place.rank == 0:
        outcome.write(config.folder)
    return outcome
