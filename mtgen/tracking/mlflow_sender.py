"""The process that sends a run's journal to MLflow. The one file that imports mlflow.

It reads the journal from the place up to which it was sent (`tracking.json`); while MLflow does not answer, it tries again, ever later.

Nothing is sent twice, whatever is killed when: before it sends, it asks the store for the last step of every metric and leaves out
the points up to it. A resumed run writes the rows beyond its checkpoint again; those that were sent before are left out by the same rule.
"""

import fcntl
import json
import logging
import math
import os
import posixpath
import re
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import yaml

from mtgen.tracking.journal import EVALUATION_PREFIX, JOURNAL_FILE, JournalRow, read_journal, read_rows

SENDER_STATE_FILE, LOCK_FILE = "tracking.json", "tracking.lock"
NOTE_TAG, NOTE_PREFIX = "mlflow.note.content", "**mtgen: "
TEST_METRIC_PREFIXES = ("test/", EVALUATION_PREFIX)  # what names of such metrics begin with
FINAL_SEND_SECONDS = 10.0  # seconds to send the rest in when training was killed
SENDER_POLL_SECONDS = 0.25  # seconds between two looks at the journal
MAX_RETRY_SECONDS = 30.0  # seconds between two attempts at a store that does not answer
WARNING_INTERVAL_SECONDS = 60.0  # seconds between two lines about the same trouble
METRICS_PER_REQUEST, PARAMS_PER_REQUEST = 1000, 100  # MLflow's limits for one request
MAX_VALUE_CHARS, MAX_NAME_CHARS, MAX_DIGEST_CHARS = (
    6000,
    250,
    36,
)  # MLflow's limits for params, names and fingerprints, in characters


@dataclass
class SenderState:
    """What the sender knows when it starts again; `tracking.json` in the run's folder. Without it, everything is sent again, once.

    Attributes:
        run_id: MLflow's name for the run.
        rows, artifacts: byte of the journal up to which each was sent.
        starts: the `start` rows of the journal at that time: one that is not among them marks where it was cut since, for a resume.
    """

    run_id: str = ""
    rows: int = 0
    artifacts: int = 0
    starts: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> "SenderState":
        """The state of the run in `folder`, its places moved back to where the journal was cut since."""
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
        """Write it beside and rename it, so that no kill leaves half of it."""
        beside = folder / (SENDER_STATE_FILE + ".new")
        beside.write_text(json.dumps(asdict(self)))
        os.replace(beside, folder / SENDER_STATE_FILE)


def pending_rows(folder: str | Path) -> int:
    """How many rows of a run's journal MLflow has not got yet."""
    state = SenderState.load(Path(folder))

    def waits(row: JournalRow) -> bool:
        numbers = row.end > state.rows and bool(row.values or row.start or row.status or row.tags)
        return numbers or (row.end > state.artifacts and bool(row.artifact or row.start))

    return sum(waits(row) for row in read_journal(folder, min(state.rows, state.artifacts)))


class RetryState:
    """Attempts at something that fails: later and later, with one line a while about it."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.next = 0.0
        self._wait = 0.0
        self._told: float | None = None

    def attempt(self, action: Callable[[], None]) -> bool:
        """Do it, if it is time to; what it raises is told, and it is tried again later. Whether it is done."""
        if time.monotonic() < self.next:
            return False
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever MLflow, its database or the network may raise: training goes on
            self._wait = min(max(1.0, 2 * self._wait), MAX_RETRY_SECONDS)
            self.next = time.monotonic() + self._wait
            if self._told is None or time.monotonic() - self._told >= WARNING_INTERVAL_SECONDS:
                self._told = time.monotonic()
                say(
                    f"{self.what} are kept and will be sent later ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
                )
            return False
        if self._told is not None:
            say(f"{self.what} are sent again, nothing is lost")
        self.next = self._wait = 0.0
        self._told = None
        return True


def say(text: str) -> None:
    """One line to whoever watches."""
    print(f"MLflow: {text}", file=sys.stderr, flush=True)


class MLflowRun:
    """A run in MLflow's store: found again, or made where the store has none.

    Args:
        start: the first row of the journal; its id is the run's own name, so that it is found even if the answer to its creation was lost.
        run_id: MLflow's name for it, where known.
        folder: the run's folder.

    Attributes:
        steps: name of a metric -> the last step that the store has of it.
    """

    def __init__(self, start: dict[str, Any], began: float, run_id: str, folder: Path) -> None:
        from mlflow.tracking.client import MlflowClient  # here, because it takes seconds

        self.uri = os.environ["MLFLOW_TRACKING_URI"]
        with _alone(self.uri):
            self.client = MlflowClient(self.uri)
        run = self._by_id(run_id) or self._by_start(start, began, folder)
        self.id: str = run.info.run_id
        self.params: dict[str, str] = dict(run.data.params)
        # MLflow's own system metrics monitor reads the last steps here, too: no public call has them without the whole history
        self.steps: dict[str, int] = {metric.key: metric.step for metric in run.data._metric_objs}

    def _by_id(self, run_id: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id) if run_id else None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run and run.info.lifecycle_stage == "active" else None

    def _by_start(self, start: dict[str, Any], began: float, folder: Path) -> Any:
        name = os.environ["MLFLOW_EXPERIMENT_NAME"]
        known = self.client.get_experiment_by_name(name)
        kind = {
            "mlflow.experimentKind": "custom_model_development"
        }  # else MLflow's pages open in their mode for language models
        experiment = (
            known.experiment_id
            if known
            else self.client.create_experiment(name, _artifact_folder(self.uri, folder), kind)
        )
        found = self.client.search_runs([experiment], f"tags.`mtgen.run` = '{start['id']}'")
        if found:
            return found[0]
        tags = {"mtgen.run": start["id"]}
        if group := start.get("group"):
            tags["mlflow.parentRunId"] = self._group(experiment, group, began)
        return self.client.create_run(experiment, int(began * 1000), tags, start["name"])

    def _group(self, experiment: str, name: str, began: float) -> str:
        """The run under which all of a group lie: found, or made. Of two made at once the older is taken."""
        known = f"tags.`mtgen.group` = '{name.replace(chr(39), '_')}'"
        made = None
        if not self.client.search_runs([experiment], known):
            made = self.client.create_run(
                experiment, int(began * 1000), {"mtgen.group": name.replace("'", "_")}, name
            ).info.run_id
            self.client.set_terminated(made)
        first = self.client.search_runs([experiment], known, order_by=["attributes.start_time", "attributes.run_id"])[
            0
        ].info.run_id
        if made not in (None, first):
            self.client.delete_run(made)
        return str(first)

    def note(self, text: str) -> None:
        """Write the run's note, unless somebody wrote one of their own over it."""
        there = self.client.get_run(self.id).data.tags.get(NOTE_TAG, "")
        if there != text and (not there or there.startswith(NOTE_PREFIX)):
            self.client.set_tag(self.id, NOTE_TAG, text)

    def begin(self, start: dict[str, Any]) -> None:
        """Send the configuration and the tags. MLflow's params cannot change: a resume's other values are tags, `resumed.KEY`."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        params = {_name(key): _cut(value) for key, value in flatten(yaml.safe_load(start["config"]))}
        changed = {f"resumed.{key}": value for key, value in params.items() if self.params.get(key, value) != value}
        new = [Param(key, value) for key, value in params.items() if key not in self.params]
        said = [RunTag(key, _cut(str(value))) for key, value in {**start["tags"], **changed}.items()]
        for group in range(0, max(len(new), len(said)), PARAMS_PER_REQUEST):
            self.client.log_batch(
                self.id, params=new[group : group + PARAMS_PER_REQUEST], tags=said[group : group + PARAMS_PER_REQUEST]
            )
        self.params.update({param.key: param.value for param in new})
        tags = start["tags"]
        digest = tags["dataset.fingerprint"][:MAX_DIGEST_CHARS]
        dataset = Dataset(
            tags["dataset.name"],
            digest,
            "local",
            json.dumps({"uri": params["data.path"] if params["data.path"] != "None" else params["data.mixture"]}),
        )
        self.client.log_inputs(self.id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
        self.client.update_run(self.id, status="RUNNING")

    def log(self, rows: list[JournalRow]) -> None:
        """Send the numbers of `rows` against images seen, but for points that the store has already."""
        from mlflow.entities import Metric

        metrics = []
        for row in rows:
            for key, value in row.values.items():
                key = _name(key)
                # a run can be evaluated again and at an older checkpoint; a resume does not write those rows again
                if row.images > self.steps.get(key, -1) or key.startswith(EVALUATION_PREFIX):
                    self.steps[key] = max(row.images, self.steps.get(key, -1))
                    metrics.append(Metric(key, value, int(row.time * 1000), row.images))
        for group in range(0, len(metrics), METRICS_PER_REQUEST):
            self.client.log_batch(self.id, metrics=metrics[group : group + METRICS_PER_REQUEST])

    def say(self, tags: dict[str, str]) -> None:
        """Set tags, over those of the same names."""
        from mlflow.entities import RunTag

        self.client.log_batch(self.id, tags=[RunTag(_name(key), _cut(text)) for key, text in tags.items()])

    def end(self, status: str, when: float) -> None:
        """FINISHED, FAILED or KILLED, at the time `when`."""
        self.client.set_terminated(self.id, status, int(when * 1000))


class Sender:
    """Sends the journal of a run to MLflow in order; numbers do not wait for artifacts, whose store may fail alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = open(folder / JOURNAL_FILE, "rb")
        self.first = next(row for row in read_rows(self.file) if row.start)
        self.state = SenderState.load(folder)
        self.run: MLflowRun | None = None
        self.rows = RetryState("rows")
        self.artifacts = RetryState("artifacts")
        self._ended = False

    def work(self) -> bool:
        """Send what is there, as far as MLflow takes it; whether everything is sent."""
        if any(read_rows(self.file, self.state.rows)) and not self.rows.attempt(self._send_rows):
            return False
        return not any(read_rows(self.file, self.state.artifacts)) or self.artifacts.attempt(self._send_artifacts)

    def retry_now(self) -> None:
        """Try again at once: there is little time left."""
        self.rows.next = self.artifacts.next = 0.0

    def report_killed(self) -> bool:
        """Training ended without a word: say so in MLflow behind its numbers, if the journal does not say how it ended.

        Returns:
            Whether MLflow knows.
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
                self.state.run_id, self.state.rows, self.state.artifacts = self.run.id, 0, 0
            self._sent()
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
                    run.say(row.tags)
                waiting.append(row)
                if sum(len(row.values) for row in waiting) >= METRICS_PER_REQUEST:
                    self._log(run, waiting)
            self._log(run, waiting)
        except Exception:
            self.run = None  # what arrived is not known: ask again before the next attempt
            raise

    def _log(self, run: MLflowRun, waiting: list[JournalRow]) -> None:
        if waiting:
            run.log(waiting)
            self.state.rows = waiting[-1].end
            self._sent()
            waiting.clear()

    def _send_artifacts(self) -> None:
        run, told = self._connect(), False
        for row in read_rows(self.file, self.state.artifacts):
            told = (
                told
                or bool(row.start or row.artifact or row.status or row.tags)
                or any(name.startswith(TEST_METRIC_PREFIXES) for name in row.values)
            )
            if row.start:
                run.client.log_text(run.id, row.start["config"], "config.yaml")
            elif row.artifact:
                path = self.folder / row.artifact["path"]
                if path.exists():
                    run.client.log_artifact(run.id, str(path), row.artifact["to"] or None)
                else:
                    say(f"{path} is gone and cannot be sent")
            self.state.artifacts = row.end
            if row.start or row.artifact:
                self._sent()

        if told:
            run.note(summary(read_rows(self.file), run.id))

    def _sent(self) -> None:
        self.state.save(self.folder)


def summary(rows: Iterable[JournalRow], run_id: str) -> str:
    """A run in Markdown, from its journal: what it is, its last numbers on test data, its last grid of samples."""
    start: dict[str, Any] = {}
    numbers: dict[str, float] = {}
    tags: dict[str, str] = {}
    images, picture = 0, None
    for row in rows:
        start, images = row.start or start, row.images
        tags |= row.tags
        numbers |= {name: value for name, value in row.values.items() if name.startswith(TEST_METRIC_PREFIXES)}
        if row.artifact and row.artifact["path"].endswith("grid.png"):
            picture = posixpath.join(row.artifact["to"], posixpath.basename(row.artifact["path"]))
    config = yaml.safe_load(start["config"])
    lines = [f"{NOTE_PREFIX}{start['name']}**, on {start['tags']['dataset.name']}: {images:,} images seen", ""]
    lines += [f"- {part}: {', '.join(config.get(part) or {}) or 'none'}" for part in ("tasks", "conditions")]
    lines += [f"- {name.replace('.', ' ')}: {' '.join(text.split())}" for name, text in tags.items()]
    if picture:  # an address of MLflow's own server
        lines += ["", f"![Samples](get-artifact?{urlencode({'path': picture, 'run_uuid': run_id})})"]
    if numbers:
        lines += [
            "",
            "| on test data | |",
            "|---|---|",
            *(f"| {name} | {value:.4f} |" for name, value in numbers.items()),
        ]
    return _cut("\n".join(lines))


def flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested mapping as pairs of a dotted key and a text: `("data.path", "digits")`."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _name(key: str) -> str:
    """The key in the characters that MLflow takes, and not as a path that it refuses."""
    return posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", key)).lstrip("/.")[:MAX_NAME_CHARS] or "_"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 1] + "…"


def _database(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _artifact_folder(uri: str, folder: Path) -> str | None:
    """Where the files of an experiment lie: a tracking server decides it, a database alone has no place for them."""
    if urlsplit(uri).scheme in ("http", "https", "databricks"):
        return None
    return str(((_database(uri) or folder).parent / "mlartifacts").absolute())


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """No other sender opens the same SQLite file meanwhile: two that make its tables at once fall over each other."""
    database = _database(uri)
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{database}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not database.exists():
            _make(database)
        yield


def _make(database: Path) -> None:
    """A new store, made beside and renamed: MLflow makes its tables one by one, and a sender that is killed meanwhile would leave a half
    that no other can open."""
    from mlflow import MlflowClient

    beside = Path(f"{database}.new")
    beside.unlink(missing_ok=True)
    MlflowClient(f"sqlite:///{beside}").search_experiments(max_results=1)
    beside.replace(database)


def _lock(folder: Path) -> Callable[[], bool]:
    """A function that says whether this process is the run's only sender; the one of a killed training may have its last words."""
    file = open(folder / LOCK_FILE, "w")

    def take() -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            say(f"{folder / LOCK_FILE}: no locks on this file system ({error.strerror}); going on without")
        return True

    return take


def main() -> None:
    """The process, `python -m mtgen.tracking.mlflow_sender FOLDER`.

    Its standard input ends when training does; a number that is written to it before is how many seconds are left for the rest.
    """
    folder = Path(sys.argv[1])
    os.nice(10)
    logging.disable(logging.WARNING)
    only = _lock(folder)
    sender: Sender | None = None
    last_words, deadline = "", math.inf
    while time.monotonic() < deadline:
        closing = deadline < math.inf
        if sender is None and only():
            sender = Sender(folder)
        if sender:
            sent = sender.work()
            if closing and (last_words or sender.report_killed()) and sent:
                return
        elif closing and not pending_rows(folder):  # the training's own sender has sent it
            return
        if closing:
            time.sleep(SENDER_POLL_SECONDS)
        elif select.select([sys.stdin], [], [], SENDER_POLL_SECONDS)[0]:
            last_words = sys.stdin.read().strip()
            deadline = time.monotonic() + float(last_words or FINAL_SEND_SECONDS)
            if sender:
                sender.retry_now()


if __name__ == "__main__":
    main()
