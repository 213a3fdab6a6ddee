"""The process that sends a run's journal to MLflow: `python -m mtgen.tracking.mlflow_sender FOLDER`.

It reads the journal from the position up to which it was sent (`tracking.json`). While MLflow does not answer, it
retries at growing intervals.

No point is sent twice, even after a kill: before it sends, it asks the store for the last step of each metric and skips
earlier points. A resumed run writes the rows after its checkpoint again; the same rule skips those sent before.
"""

import fcntl
import json
import logging
import math
import os
import select
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mtgen.errors import UserError
from mtgen.tracking.journal import JOURNAL_FILE, JournalRow, read_journal, read_rows
from mtgen.tracking.mlflow_run import METRIC_PREFIXES, METRICS_PER_REQUEST, MLflowRun, summary

SENDER_STATE_FILE, LOCK_FILE = "tracking.json", "tracking.lock"
FINAL_SEND_SECONDS = 10.0
"""Seconds for what is left to send after training was killed."""
SENDER_POLL_SECONDS = 0.25
"""Seconds between two reads of the journal."""
MAX_RETRY_SECONDS = 30.0
"""Longest interval between two attempts at a store that does not answer."""
WARNING_INTERVAL_SECONDS = 60.0
"""Shortest interval between two warnings about the same problem."""


@dataclass
class SenderState:
    """The sender's state, `tracking.json` in the run's folder; without it, all is sent again, without duplicates.

    Attributes:
        run_id: MLflow's id of the run.
        rows: byte of the journal up to which metrics, parameters and tags were sent.
        artifacts: byte of the journal up to which artifacts were sent.
        starts: ids of the journal's `start` rows at that time: a new one marks where a resume cut the journal.
    """

    run_id: str = ""
    rows: int = 0
    artifacts: int = 0
    starts: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> "SenderState":
        """The state of the run in `folder`, its positions moved back to where the journal was cut since."""
        try:
            state = cls(**json.loads((folder / SENDER_STATE_FILE).read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            state = cls()
        starts = {row.start["id"]: row.begin for row in read_journal(folder) if row.start}
        cut = min(
            (begin for start, begin in starts.items() if start not in state.starts),
            default=state.rows + state.artifacts,
        )
        return cls(state.run_id, min(state.rows, cut), min(state.artifacts, cut), list(starts))

    def save(self, folder: Path) -> None:
        """Write the state to a new file and rename it, so that a kill leaves no partial file."""
        new = folder / (SENDER_STATE_FILE + ".new")
        new.write_text(json.dumps(asdict(self)))
        os.replace(new, folder / SENDER_STATE_FILE)


def pending_rows(folder: str | Path) -> int:
    """Number of journal rows that have not been sent to MLflow."""
    state = SenderState.load(Path(folder))

    def is_pending(row: JournalRow) -> bool:
        has_data = bool(row.values or row.start or row.status or row.tags)
        has_artifact = bool(row.artifact or row.start)
        return (row.end > state.rows and has_data) or (row.end > state.artifacts and has_artifact)

    return sum(is_pending(row) for row in read_journal(folder, min(state.rows, state.artifacts)))


class RetryState:
    """Repeats an action that may fail, at growing intervals and with few warnings.

    Args:
        what: subject of the warnings, such as "metrics".

    Attributes:
        refused: whether the last attempt failed for a reason that only the user can remove.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.refused = False
        self.next = 0.0
        self._interval = 0.0
        self._warned_at: float | None = None

    def attempt(self, action: Callable[[], None]) -> bool:
        """Run `action` if an attempt is due, and return whether it succeeded; failures are printed and retried."""
        if time.monotonic() < self.next:
            return False
        try:
            self.refused = False
            action()
        except Exception as error:  # noqa: BLE001 - no error of MLflow, its database or the network stops the sender
            self.refused = isinstance(error, UserError)
            self._interval = min(max(1.0, 2 * self._interval), MAX_RETRY_SECONDS)
            self.next = time.monotonic() + self._interval
            if self._warned_at is None or time.monotonic() - self._warned_at >= WARNING_INTERVAL_SECONDS:
                self._warned_at = time.monotonic()
                text = " ".join(str(error).split())
                reason = text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:200]}"
                say(f"{self.what} are kept and will be sent later ({reason})")
            return False
        if self._warned_at is not None:
            say(f"{self.what} are being sent again; nothing was lost")
        self.next = self._interval = 0.0
        self._warned_at = None
        return True


def say(text: str) -> None:
    """Print a line to standard error."""
    print(f"MLflow: {text}", file=sys.stderr, flush=True)


class Sender:
    """Sends the journal of a run to MLflow in order; metrics do not wait for artifacts, whose store may fail."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = open(folder / JOURNAL_FILE, "rb")
        self.first = next(row for row in read_rows(self.file) if row.start)
        self.state = SenderState.load(folder)
        self.run: MLflowRun | None = None
        self.rows = RetryState("metrics")
        self.artifacts = RetryState("artifacts")
        self._ended = False

    def work(self) -> bool:
        """Send as much of the journal as MLflow accepts; return whether everything is sent."""
        if any(read_rows(self.file, self.state.rows)) and not self.rows.attempt(self._send_rows):
            return False
        return not any(read_rows(self.file, self.state.artifacts)) or self.artifacts.attempt(self._send_artifacts)

    def retry_now(self) -> None:
        """Make the next attempt immediately, because little time is left."""
        self.rows.next = self.artifacts.next = 0.0

    def report_killed(self) -> bool:
        """Mark the run as KILLED in MLflow, after its metrics, unless the journal says how it ended.

        Returns:
            Whether MLflow has the status.
        """
        if not self._ended and not any(read_rows(self.file, self.state.rows)):
            last = [row.status for row in read_rows(self.file) if row.start or row.status][-1]
            self._ended = last is not None or self.rows.attempt(lambda: self._connect().end("KILLED", time.time()))
        return self._ended

    def _connect(self) -> MLflowRun:
        if self.run is None:
            assert self.first.start is not None
            self.run = MLflowRun(self.first.start, self.first.time, self.state.run_id, self.folder)
            if self.run.id != self.state.run_id:
                self.state = SenderState(self.run.id, starts=self.state.starts)
            self.state.save(self.folder)
        return self.run

    def _send_rows(self) -> None:
        try:
            run = self._connect()
            waiting: list[JournalRow] = []
            for row in read_rows(self.file, self.state.rows):
                if row.start:
                    self._log(run, waiting)
                    run.begin(row.start)
                elif row.status:
                    self._log(run, waiting)
                    run.end(row.status, row.time)
                elif row.tags:
                    run.set_tags(row.tags)
                waiting.append(row)
                if sum(len(row.values) for row in waiting) >= METRICS_PER_REQUEST:
                    self._log(run, waiting)
            self._log(run, waiting)
        except Exception:
            self.run = None  # it is unknown what arrived: query the store before the next attempt
            raise

    def _log(self, run: MLflowRun, waiting: list[JournalRow]) -> None:
        """Send the metrics of the waiting rows, and clear the list."""
        if waiting:
            run.log(waiting)
            self.state.rows = waiting[-1].end
            self.state.save(self.folder)
            waiting.clear()

    def _send_artifacts(self) -> None:
        run = self._connect()
        changes_note = False
        for row in read_rows(self.file, self.state.artifacts):
            changes_note |= _changes_note(row)
            if row.start:
                run.client.log_text(run.id, row.start["config"], "config.yaml")
            elif row.artifact:
                path = self.folder / row.artifact["path"]
                if path.exists():
                    run.client.log_artifact(run.id, str(path), row.artifact["to"] or None)
                else:
                    say(f"{path} no longer exists and is not sent")
            self.state.artifacts = row.end
            if row.start or row.artifact:
                self.state.save(self.folder)
        if changes_note:
            run.note(summary(read_rows(self.file), run.id))


def _changes_note(row: JournalRow) -> bool:
    """Whether the note of the run shows something of a row."""
    has_metric = any(name.startswith(METRIC_PREFIXES) for name in row.values)
    return has_metric or bool(row.start or row.artifact or row.status or row.tags)


def _lock(folder: Path) -> Callable[[], bool]:
    """A function that tries to lock the run and returns whether this process is its only sender.

    The sender of a killed training may still hold the lock for its last rows.
    """
    file = open(folder / LOCK_FILE, "w")

    def take() -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            say(f"{folder / LOCK_FILE}: the file system does not support locks ({error.strerror}); continuing without")
        return True

    return take


def main() -> None:
    """Run the process until its standard input ends; a number before the end is the time left, in seconds."""
    folder = Path(sys.argv[1])
    os.nice(10)
    logging.disable(logging.WARNING)
    is_only_sender = _lock(folder)
    sender: Sender | None = None
    time_left, deadline = "", math.inf
    while time.monotonic() < deadline:
        closing = deadline < math.inf
        if sender is None and is_only_sender():
            sender = Sender(folder)
        if sender:
            sent = sender.work()
            if closing and (sender.rows.refused or ((time_left or sender.report_killed()) and sent)):
                return
        elif closing and not pending_rows(folder):  # the sender of the training has sent everything
            return
        if closing:
            time.sleep(SENDER_POLL_SECONDS)
        elif select.select([sys.stdin], [], [], SENDER_POLL_SECONDS)[0]:
            time_left = sys.stdin.read().strip()
            deadline = time.monotonic() + float(time_left or FINAL_SEND_SECONDS)
            if sender:
                sender.retry_now()


if __name__ == "__main__":
    main()
