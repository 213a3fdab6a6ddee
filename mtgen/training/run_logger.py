"""What the first worker of a run records: the journal, from which MLflow is fed, the log, alarms and the report."""

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mtgen.alarms import ALARMS_FILE, Alarm, AlarmMonitor
from mtgen.balancing.conflicts import write_artifacts
from mtgen.config import Config
from mtgen.data.mixture import Samples
from mtgen.errors import DataError, summarize_lines
from mtgen.models.model import Networks
from mtgen.tracking.journal import JournalRow
from mtgen.tracking.progress_bar import format_duration, format_losses, format_pace
from mtgen.tracking.run_log import RunLog
from mtgen.tracking.tracker import Tracker
from mtgen.training.dataset import rare_label_mask
from mtgen.training.first_batch import write_first_batch
from mtgen.training.protocol import Outcome, ReportCallback, WorkerContext

MLFLOW_STATUS = {"finished": "FINISHED", "out of time": "FINISHED", "stopped": "KILLED"}
"""Status of an outcome -> MLflow's word for it; any other status is "FAILED"."""

MAX_CLASSES_NAMED = 10
"""Classes without a sample that the first lines of a log name."""


def warn(folder: Path, text: str) -> None:
    """Print a problem that does not stop the run in `folder`, and log it there."""
    print(f"warning: {text}", flush=True)
    RunLog(folder).write(f"warning: {text}")


class RunLogger:
    """Journal, log, alarms and report of a run while it trains, from a position on.

    Args:
        images: position from which the run starts or resumes.
        report: writes the report; `None`: there is none.
        hosts: host name of each worker, by rank.
    """

    def __init__(
        self,
        config: Config,
        samples: Samples,
        networks: Networks,
        worker: WorkerContext,
        images: int,
        report: ReportCallback | None = None,
        hosts: Sequence[str] = (),
    ) -> None:
        self.config = config
        self.folder = config.folder
        self.log = RunLog(config.folder)
        self._report = report
        self._reporting: threading.Thread | None = None
        self._tracker = Tracker(config, self.folder, samples.card, samples.fingerprint, images, worker.world, hosts)
        self.log.write(_describe_run(config, samples, networks, worker, images))
        if images:
            self.phase(images, f"resuming from {images:,} images on {worker.world} worker{'s' * (worker.world > 1)}")
        self._alarms = AlarmMonitor(config, self.folder)
        self._print_alarms(self._alarms.late)
        if self._alarms.raised:  # a resume may have cut the journal's rows with alarms before they were sent
            self._send_alarms(images)

    def first_batch(self, samples: Samples) -> None:
        """Write pictures of the first samples; a damaged one is only a warning, since the loader will find it too."""
        try:
            self.artifacts(0, write_first_batch(self.config, samples), "samples")
        except (DataError, OSError) as error:
            warn(self.folder, f"no picture of the first samples: {error}")

    def numbers(self, images: int, values: Mapping[str, float]) -> None:
        """Write one row of metrics and one line of the log, and raise the alarms that the row gives cause for."""
        written = self._tracker.row(images, values)
        row = JournalRow(images, time.time(), values=written)
        total = self.config.train.images
        parts = [f"{images:,}/{total:,} images", format_pace(row, None, total), format_losses(row)]
        self.log.write("  ".join(filter(None, parts)))
        self._check_alarms(images, written)

    def evaluation(self, images: int, values: Mapping[str, float], seconds: float, pictures: Iterable[Path]) -> None:
        """Record the metrics and pictures of a snapshot that took `seconds`, and plots of the gates' statistics."""
        written = self._tracker.row(images, values)
        named = [
            f"{name.rpartition('/')[2].replace('_', ' ')} {value:.3g}"
            for name, value in written.items()
            if "system/" not in name
        ]
        self.log.write(f"evaluation at {images:,} images ({format_duration(seconds)}): {', '.join(named)}")
        self._check_alarms(images, written)
        self.artifacts(images, pictures, "samples")
        self.artifacts(images, write_artifacts(self.folder), "balancing")

    def artifacts(self, images: int, paths: Iterable[Path], to: str = "") -> None:
        """Keep files with the run, in the folder `to` of its artifacts."""
        for path in paths:
            self._tracker.artifact(images, path, to)

    def print(self, *lines: str) -> None:
        """Print and log some lines."""
        for line in lines:
            print(line, flush=True)
            self.log.write(line)

    def phase(self, images: int, text: str) -> None:
        """Record what the run does while it makes no steps, such as "evaluating"; "" when it continues."""
        self._tracker.phase(images, text)

    def checkpoint(self, folder: Path, seconds: float) -> None:
        """Log that a checkpoint is complete, and how long writing it took; called in the writer thread."""
        self.log.write(f"checkpoint of {int(folder.name):,} images is complete, written in {seconds:.1f}s")

    def refresh_report(self) -> None:
        """Write the run's report again, in a thread; not while an earlier one is being written."""
        if self._report is not None and (self._reporting is None or not self._reporting.is_alive()):
            self._reporting = threading.Thread(target=self._report, args=(self.folder,), name="report", daemon=True)
            self._reporting.start()

    def finish(self, outcome: Outcome) -> None:
        """End the journal and write the last report; rows that MLflow has not received by then are kept."""
        kept = self._tracker.finish(outcome.images, MLFLOW_STATUS.get(outcome.status, "FAILED"))
        if kept:
            warn(
                self.folder,
                f"{kept} rows could not be sent to MLflow; they are kept in {self.folder} and sent later",
            )
        if self._reporting is not None:
            self._reporting.join()
        if self._report is not None:
            self._report(self.folder)

    def _check_alarms(self, images: int, written: Mapping[str, float]) -> None:
        if new := self._alarms.check(images, written):
            self._print_alarms(new)
            self._send_alarms(images)

    def _print_alarms(self, alarms: list[Alarm]) -> None:
        self.print(*(f"alarm: {alarm}" for alarm in alarms))

    def _send_alarms(self, images: int) -> None:
        """Send all alarms so far to MLflow: one tag per kind, and the file as an artifact."""
        kinds: dict[str, list[Alarm]] = {}
        for alarm in self._alarms.raised:
            kinds.setdefault(alarm.kind, []).append(alarm)
        self._tracker.tags(images, {f"alarm.{kind}": "\n".join(map(str, alarms)) for kind, alarms in kinds.items()})
        self._tracker.artifact(images, self.folder / ALARMS_FILE)


def _describe_run(config: Config, samples: Samples, networks: Networks, worker: WorkerContext, images: int) -> str:
    """The first lines of a log: what the run trains, on which data, and where."""
    begins = f"resumes from {images:,} images" if images else "begins"
    labeled = ", ".join(f"{int(samples.present[c].sum()):,} with {c}" for c in config.components)
    if (favored := int(rare_label_mask(config, samples).sum())) and config.data.label_oversampling:
        labeled += f"; {favored:,} with rare labels are {config.data.label_oversampling:.1%} of all that training sees"
    generator, discriminator = (
        sum(p.numel() for p in module.parameters()) for module in (networks.generator, networks.side)
    )
    unused = samples.card.unused_classes
    missing = [f"classes without a sample: {', '.join(summarize_lines(unused, MAX_CLASSES_NAMED))}"] if unused else []
    return "\n".join(
        [
            f"{config.name} {begins}, to {config.train.images:,} images; configuration: config.yaml",
            f"data: {samples.card.name}, {len(samples):,} samples of split {samples.split} ({labeled}), "
            f"{samples.whole - len(samples):,} held out for validation, {samples.fingerprint[:12]}",
            *missing,
            f"tasks: {', '.join(config.task_settings())}; "
            f"conditions: {', '.join(config.condition_settings()) or 'none'}",
            f"parameters: {generator:,} in the generator, {discriminator:,} in the discriminator module",
            f"workers: {worker.world} x {worker.device} ({worker.threads} threads each), {config.precision}, "
            f"ZeRO-{config.zero_stage}, batches of {config.batch_size}",
        ]
    )
