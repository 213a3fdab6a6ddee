"""A run in MLflow's store: found or created, filled from journal rows, with a note that describes it."""

import fcntl
import json
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import yaml

from mtgen.errors import UserError
from mtgen.tracking.journal import EVALUATION_PREFIX, TEST_PREFIX, VALIDATION_PREFIX, JournalRow

NOTE_TAG, NOTE_PREFIX = "mlflow.note.content", "**mtgen: "
METRIC_PREFIXES = (VALIDATION_PREFIX, TEST_PREFIX, EVALUATION_PREFIX)
"""Prefixes of metrics on data that is not trained on."""
METRICS_PER_REQUEST, PARAMS_PER_REQUEST = 1000, 100
"""MLflow's limits for one request."""
MAX_VALUE_CHARS, MAX_NAME_CHARS, MAX_DIGEST_CHARS = 6000, 250, 36
"""MLflow's limits for params, names and data set digests, in characters."""


class MLflowRun:
    """A run in MLflow's store at MLFLOW_TRACKING_URI; created if the store does not have it.

    Args:
        start: first `start` row of the journal. Its id is a tag of the run, by which the run is found even if the
            response to its creation was lost.
        began: time of that row, in seconds since 1970.
        run_id: MLflow's id of the run; "" if unknown.
        folder: folder of the run.

    Attributes:
        id: MLflow's id of the run.
        params: parameters that the store has.
        steps: name of a metric -> its last step in the store.
    """

    def __init__(self, start: dict[str, Any], began: float, run_id: str, folder: Path) -> None:
        from mlflow.tracking.client import MlflowClient  # takes seconds to import

        self.uri = os.environ["MLFLOW_TRACKING_URI"]
        with _exclusive_access(self.uri):
            self.client = MlflowClient(self.uri)
        run = self._by_id(run_id) or self._by_start(start, began, folder)
        self.id: str = run.info.run_id
        self.params: dict[str, str] = dict(run.data.params)
        # Private, but the only way to the last steps without whole histories; MLflow's system metrics use it too.
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
        if known and known.lifecycle_stage == "deleted":
            raise UserError(
                f"the experiment {name!r} is deleted in {self.uri}; restore it with `mlflow experiments restore "
                f"--experiment-id {known.experiment_id}`, or take another with tracking.experiment=NAME"
            )
        # By default MLflow's pages open in their mode for language models.
        kind = {"mlflow.experimentKind": "custom_model_development"}
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
        """Id of the parent run of a group, created if missing; of two created at once, the older is used."""
        tag = name.replace("'", "_")
        query = f"tags.`mtgen.group` = '{tag}'"
        created = None
        if not self.client.search_runs([experiment], query):
            created = self.client.create_run(experiment, int(began * 1000), {"mtgen.group": tag}, name).info.run_id
            self.client.set_terminated(created)
        order = ["attributes.start_time", "attributes.run_id"]
        first: str = self.client.search_runs([experiment], query, order_by=order)[0].info.run_id
        if created not in (None, first):
            self.client.delete_run(created)
        return first

    def note(self, text: str) -> None:
        """Set the run's note, unless a user has replaced it."""
        current = self.client.get_run(self.id).data.tags.get(NOTE_TAG, "")
        if current != text and (not current or current.startswith(NOTE_PREFIX)):
            self.client.set_tag(self.id, NOTE_TAG, text)

    def begin(self, start: dict[str, Any]) -> None:
        """Send configuration and tags. Params are immutable in MLflow: changes by a resume are tags, `resumed.KEY`."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        params = {_name(key): _cut(value) for key, value in flatten(yaml.safe_load(start["config"]))}
        changed = {f"resumed.{key}": value for key, value in params.items() if self.params.get(key, value) != value}
        new = [Param(key, value) for key, value in params.items() if key not in self.params]
        tags = [RunTag(key, _cut(str(value))) for key, value in {**start["tags"], **changed}.items()]
        for first in range(0, max(len(new), len(tags)), PARAMS_PER_REQUEST):
            batch = slice(first, first + PARAMS_PER_REQUEST)
            self.client.log_batch(self.id, params=new[batch], tags=tags[batch])
        self.params.update({param.key: param.value for param in new})
        name, digest = start["tags"]["dataset.name"], start["tags"]["dataset.fingerprint"][:MAX_DIGEST_CHARS]
        uri = params["data.path"] if params["data.path"] != "None" else params["data.mixture"]
        dataset = Dataset(name, digest, "local", json.dumps({"uri": uri}))
        self.client.log_inputs(self.id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
        self.client.update_run(self.id, status="RUNNING")

    def log(self, rows: list[JournalRow]) -> None:
        """Send the metrics of `rows` against images seen, except points that the store has."""
        from mlflow.entities import Metric

        metrics = []
        for row in rows:
            for key, value in row.values.items():
                key = _name(key)
                # Evaluations can be repeated, and at older checkpoints; a resume does not write those rows again.
                if row.images > self.steps.get(key, -1) or key.startswith(EVALUATION_PREFIX):
                    self.steps[key] = max(row.images, self.steps.get(key, -1))
                    metrics.append(Metric(key, value, int(row.time * 1000), row.images))
        for first in range(0, len(metrics), METRICS_PER_REQUEST):
            self.client.log_batch(self.id, metrics=metrics[first : first + METRICS_PER_REQUEST])

    def set_tags(self, tags: dict[str, str]) -> None:
        """Set tags; existing tags of the same names are replaced."""
        from mlflow.entities import RunTag

        self.client.log_batch(self.id, tags=[RunTag(_name(key), _cut(text)) for key, text in tags.items()])

    def end(self, status: str, when: float) -> None:
        """Set the final status (FINISHED, FAILED or KILLED) and its time, in seconds since 1970."""
        self.client.set_terminated(self.id, status, int(when * 1000))


def summary(rows: Iterable[JournalRow], run_id: str) -> str:
    """The note of a run in Markdown, from its journal: tasks, tags, last metrics on unseen data, last sample grid."""
    start: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    tags: dict[str, str] = {}
    images, picture = 0, None
    for row in rows:
        start, images = row.start or start, row.images
        tags |= row.tags
        metrics |= {name: value for name, value in row.values.items() if name.startswith(METRIC_PREFIXES)}
        if row.artifact and row.artifact["path"].endswith("grid.png"):
            picture = posixpath.join(row.artifact["to"], posixpath.basename(row.artifact["path"]))
    config = yaml.safe_load(start["config"])
    lines = [f"{NOTE_PREFIX}{start['name']}**, on {start['tags']['dataset.name']}: {images:,} images seen", ""]
    lines += [f"- {part}: {', '.join(config.get(part) or {}) or 'none'}" for part in ("tasks", "conditions")]
    lines += [f"- {name.replace('.', ' ')}: {' '.join(text.split())}" for name, text in tags.items()]
    if picture:  # a URL of MLflow's server
        lines += ["", f"![Samples](get-artifact?{urlencode({'path': picture, 'run_uuid': run_id})})"]
    if metrics:
        lines += ["", "| on unseen data | |", "|---|---|"]
        lines += [f"| {name} | {value:.4f} |" for name, value in metrics.items()]
    return _cut("\n".join(lines))


def flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested mapping as pairs of dotted key and text: `("data.path", "digits")`."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _name(key: str) -> str:
    """A valid MLflow name: invalid characters are replaced, and paths normalized."""
    return posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", key)).lstrip("/.")[:MAX_NAME_CHARS] or "_"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 1] + "…"


def _database(uri: str) -> Path | None:
    """The file of an SQLite store."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _artifact_folder(uri: str, folder: Path) -> str | None:
    """Folder of an experiment's artifacts: next to a database; `None` if a tracking server decides."""
    if urlsplit(uri).scheme in ("http", "https", "databricks"):
        return None
    return str(((_database(uri) or folder).parent / "mlartifacts").absolute())


@contextmanager
def _exclusive_access(uri: str) -> Iterator[None]:
    """Keep other senders from opening the same SQLite file: two that create its tables at once fail."""
    database = _database(uri)
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{database}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not database.exists():
            _create(database)
        yield


def _create(database: Path) -> None:
    """Create a store under another name and rename it, so that a kill leaves no partial store."""
    from mlflow import MlflowClient

    new = Path(f"{database}.new")
    new.unlink(missing_ok=True)
    MlflowClient(f"sqlite:///{new}").search_experiments(max_results=1)
    new.replace(database)
