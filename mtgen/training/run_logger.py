"""What the first worker of a run writes down: its journal, from which MLflow is fed, its log, and its alarms."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from mtgen.alarms import ALARMS_FILE, Alarm, AlarmMonitor
from mtgen.config import Config
from mtgen.data.mixture import Samples
from mtgen.errors import DataError
from mtgen.models.model import Networks
from mtgen.tracking.journal import JournalRow
from mtgen.tracking.progress_bar import format_duration, format_losses, format_pace
from mtgen.tracking.run_log import RunLog
from mtgen.tracking.tracker import Tracker
from mtgen.training.dataset import rare_label_mask
from mtgen.training.first_batch import write_first_batch
from mtgen.training.protocol import Outcome, WorkerContext

MLFLOW_STATUS = {"finished": "FINISHED", "out of time": "FINISHED", "stopped": "KILLED"}
"""How training ended -> the word that MLflow has for it; any other end is "FAILED"."""


def warn(folder: Path, text: str) -> None:
    """Say on the terminal, and in the run's log, what went wrong and does not stop the run."""
    print(f"warning: {text}", flush=True)
    RunLog(folder).write(f"warning: {text}")


class RunLogger:
    """A run's records while it trains, from a certain position on.

    Args:
        images: position from which it goes on.
    """

    def __init__(self, config: Config, samples: Samples, networks: Networks, place: WorkerContext, images: int) -> None:
        self.config = config
        self.folder = config.folder
        self.log = RunLog(config.folder)
        self._tracker = Tracker(config, self.folder, samples.card, samples.fingerprint, images, place.world)
        self.log.write(_begin(config, samples, networks, place, images))
        if images:
            self.phase(images, f"going on from {images:,} images on {place.world} worker{'s' * (place.world > 1)}")
        self._alarms = AlarmMonitor(config, self.folder)
        self._alarm(self._alarms.late)
        if self._alarms.raised:  # a resume may have cut the rows that said so before they were sent
            self._tell(images)

    def first_batch(self, samples: Samples) -> None:
        """Pictures of the first samples; what is wrong with one of them the loader will meet too, and end the run or replace it."""
        try:
            self.artifacts(0, write_first_batch(self.config, samples), "samples")
        except (DataError, OSError) as error:
            warn(self.folder, f"no picture of the first samples: {error}")

    def numbers(self, images: int, values: Mapping[str, float]) -> None:
        """A row of numbers, and what they give alarm of; a line of the log."""
        written = self._tracker.row(images, values)
        row = JournalRow(images, time.time(), values=written)
        total = self.config.train.images
        self.log.write(
            "  ".join(filter(None, [f"{images:,}/{total:,} images", format_pace(row, None, total), format_losses(row)]))
        )
        self._watch(images, written)

    def evaluation(self, images: int, values: Mapping[str, float], seconds: float) -> None:
        """The same for the metrics of a snapshot, which took so long."""
        written = self._tracker.row(images, values)
        named = [
            f"{name.rpartition('/')[2].replace('_', ' ')} {value:.3g}"
            for name, value in written.items()
            if "system/" not in name
        ]
        self.log.write(f"evaluation at {images:,} images ({format_duration(seconds)}): {', '.join(named)}")
        self._watch(images, written)

    def artifacts(self, images: int, paths: Iterable[Path], to: str = "") -> None:
        """Files to keep with the run, in the folder `to` of its artifacts."""
        for path in paths:
            self._tracker.artifact(images, path, to)

    def say(self, *lines: str) -> None:
        """Lines for the terminal and the log."""
        for line in lines:
            print(line, flush=True)
            self.log.write(line)

    def phase(self, images: int, text: str) -> None:
        """What the run is busy with while no numbers come; "" when it goes on."""
        self._tracker.phase(images, text)

    def checkpoint(self, folder: Path, seconds: float) -> None:
        """A checkpoint that is whole, and how long it took to write; from the thread that wrote it."""
        self.log.write(f"checkpoint of {int(folder.name):,} images is whole, written in {seconds:.1f}s")

    def finish(self, outcome: Outcome) -> None:
        """The end of the records; what MLflow has not got by then is kept."""
        kept = self._tracker.finish(outcome.images, MLFLOW_STATUS.get(outcome.status, "FAILED"))
        if kept:
            warn(
                self.folder,
                f"{kept} rows could not be sent to MLflow; they are kept in {self.folder} and sent on the next occasion",
            )

    def _watch(self, images: int, written: Mapping[str, float]) -> None:
        if new := self._alarms.check(images, written):
            self._alarm(new)
            self._tell(images)

    def _alarm(self, alarms: list[Alarm]) -> None:
        self.say(*(f"alarm: {alarm}" for alarm in alarms))

    def _tell(self, images: int) -> None:
        """Every alarm so far to MLflow: a tag for each kind, the file as an artifact."""
        kinds: dict[str, list[Alarm]] = {}
        for alarm in self._alarms.raised:
            kinds.setdefault(alarm.kind, []).append(alarm)
        self._tracker.tags(images, {f"alarm.{kind}": "\n".join(map(str, alarms)) for kind, alarms in kinds.items()})
        self._tracker.artifact(images, self.folder / ALARMS_FILE)


def _begin(config: Config, samples: Samples, networks: Networks, place: WorkerContext, images: int) -> str:
    """What begins, or goes on, in words: on which data, with which networks, where."""
    begins = f"goes on from {images:,} images" if images else "begins"
    labeled = ", ".join(f"{int(samples.present[c].sum()):,} with {c}" for c in config.components)
    if (favored := int(rare_label_mask(config, samples).sum())) and config.data.label_oversampling:
        labeled += f"; {favored:,} with rare labels get {config.data.label_oversampling:.1%}"
    generator, side = (sum(p.numel() for p in module.parameters()) for module in (networks.generator, networks.side))
    return "\n".join(
        [
            f"{config.name} {begins}, to {config.train.images:,} images; configuration: config.yaml",
            f"data: {samples.card.name}, {len(samples):,} samples of split {samples.split} ({labeled}), {samples.fingerprint[:12]}",
            f"tasks: {', '.join(config.task_settings())}; conditions: {', '.join(config.condition_settings()) or 'none'}",
            f"parameters: {generator:,} in the generator, {side:,} on the discriminator's side",
            f"workers: {place.world} x {place.device} ({place.threads} threads each), {config.precision}, ZeRO-{config.zero_stage}, "
            f"batches of {config.batch_size}",
        ]
    )
