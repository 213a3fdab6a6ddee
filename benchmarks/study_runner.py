"""Runs of a study: many trainings, each in its own process on one thread, whose results are stored.

Stored results are reused, so that a study can be stopped at any time and resumed by the same command. Two commands with
the same `--work` divide the runs between them.
"""

import fcntl
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ROOT, digits

from mtgen.config import load

DISCRIMINATIVE_TASKS = ("classification", "tagging", "segmentation", "detection")
LEAKING_CONDITIONS = ("caption", "sound")
"""Conditions that are switched off, since they reveal the class of every image even where labels are withheld."""

METRICS = {
    "classification": ("classification", "accuracy"),
    "tagging": ("tagging", "mean AP"),
    "segmentation": ("segmentation", "mIoU"),
    "detection": ("detection", "AP50"),
    "cas": ("generation", "CAS"),
    "diversity": ("generation", "diversity"),
}
"""Key of a result -> its task, and the metric's name."""


@dataclass(frozen=True)
class Case:
    """Which labels there are.

    Attributes:
        title: what they are, in words.
        classes, dense: fractions of the training samples that keep their class and tags, and their mask and boxes.
        oversampling: least fraction of the samples that carry a rare label (`data.label_oversampling`).
    """

    title: str
    classes: float
    dense: float
    oversampling: float | None = None

    @property
    def overrides(self) -> list[str]:
        """Overrides of the configuration."""
        kept = {"class": self.classes, "tags": self.classes, "mask": self.dense, "boxes": self.dense}
        return [f"data.keep_labels={json.dumps(kept)}", f"data.label_oversampling={json.dumps(self.oversampling)}"]


CASES = {
    "few-masks": Case("every class, 2.5 % of masks and boxes", 1.0, 0.025, 0.25),
    "few-labels": Case("2.5 % of every label", 0.025, 0.025, 0.25),
    "all-labels": Case("every label", 1.0, 1.0),
}

MECHANISMS = {
    "predictions": ("tasks.segmentation.use_predictions=false", "tasks.detection.use_predictions=false"),
    "implied-classes": ("tasks.classification.implied=0",),
    "hard-labels": ("tasks.generation.hard_labels=false",),
}
"""What shares information between tasks -> overrides that switch it off."""


@dataclass(frozen=True)
class Run:
    """One training of a study.

    Attributes:
        variant: "together" (all tasks), or the single task that is trained alone.
        seed: the run's seed.
        case: name in `CASES`: which labels there are.
        policy: name of the balancing policy or of the mechanism that is switched off, if the study compares several.
        settings: further overrides of the configuration.
    """

    variant: str
    seed: int
    case: str = "all-labels"
    policy: str = ""
    settings: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """One-line description."""
        policy = f", {self.policy}" if self.policy else ""
        return f"{CASES[self.case].title}, seed {self.seed}, {self.variant}{policy}"

    def overrides(self, tasks: list[str], conditions: list[str], images: int) -> list[str]:
        """Overrides of the configuration; a discriminative task alone becomes plain supervised training."""
        if self.variant == "together":
            kept_tasks, kept_conditions = tasks, [c for c in conditions if c not in LEAKING_CONDITIONS]
        else:
            kept = {"class", "labels"} if self.variant == "generation" else set()
            kept_tasks, kept_conditions = [self.variant], [c for c in conditions if c in kept]
        return [
            *(f"tasks.{task}.weight=0" for task in tasks if task not in kept_tasks),
            *(f"conditions.{condition}.probability=0" for condition in conditions if condition not in kept_conditions),
            *(["conditions.class.probability=0.8"] if "class" in kept_conditions else []),
            *CASES[self.case].overrides,
            f"seed={self.seed}",
            f"train.images={images}",
            f"train.log_every={max(images // 10, 1)}",
            f"checkpoint.every={max(images // 4, 1)}",
            f"evaluate.every={2 * images}",
            *self.settings,
        ]


def base_settings(data: Path | None, work: Path, overrides: list[str] | None) -> list[str]:
    """Overrides that all runs share: the data (default: digits), the user's, and one process per run on the CPU."""
    return [f"data.path={digits(data, work)}", *(overrides or []), "workers=0", "device=cpu"]


@dataclass(frozen=True)
class Study:
    """Trainings of one configuration, all of the same length.

    Attributes:
        config: file of the configuration.
        base: overrides that all runs share.
        images: training images per run.
        samples: images to generate for CAS and diversity.
        work: folder for runs and results.
        parallel: number of runs at a time.
    """

    config: Path
    base: list[str]
    images: int
    samples: int
    work: Path
    parallel: int

    def results(self, runs: Sequence[Run]) -> list[dict[str, Any]]:
        """Train all runs that have no stored result; returns one row per run, with its minutes and its `METRICS`."""
        with ThreadPoolExecutor(self.parallel) as pool:
            waiting = [pool.submit(self._result, run) for run in runs]
            try:
                rows = [future.result() for future in waiting]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return [row or self._result(run, wait=True) for run, row in zip(runs, rows, strict=True)]

    def _result(self, run: Run, wait: bool = False) -> dict[str, Any]:
        """Row of a run, stored or trained now.

        Args:
            wait: wait if another command is training this run; otherwise the row is empty then.
        """
        settings = load(self.config, self.base)
        overrides = run.overrides(list(settings.task_settings()), list(settings.condition_settings()), self.images)
        whole = load(self.config, ["name=x", *self.base, *overrides]).model_dump(mode="json")
        digest = hashlib.sha256(json.dumps([whole, self.samples], sort_keys=True).encode()).hexdigest()[:8]
        name = f"{run.variant}-{run.case}-{run.seed}-{digest}"
        stored = self.work / f"{name}.json"
        with open(stored.with_suffix(".lock"), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                return {}
            if not stored.is_file():
                begin = time.monotonic()
                metrics = self._train(name, overrides)
                row = {"variant": run.variant, "policy": run.policy, "case": run.case, "seed": run.seed}
                row |= {"minutes": (time.monotonic() - begin) / 60, **metrics}
                partial = stored.with_suffix(".part")
                partial.write_text(json.dumps(row) + "\n", encoding="utf-8")
                partial.rename(stored)
        found: dict[str, Any] = json.loads(stored.read_text(encoding="utf-8"))
        numbers = ", ".join(f"{METRICS[key][1]} {found[key]:.3f}" for key in METRICS if key in found)
        print(f"{found['minutes']:5.1f} min  {run.title}: {numbers}", flush=True)
        return found

    def _train(self, name: str, overrides: list[str]) -> dict[str, float]:
        """Train and evaluate one run in another process; returns its metrics."""
        arguments = [str(self.config), *self.base, *overrides, f"name={name}", f"runs={self.work}/runs"]
        program = str(ROOT / "benchmarks/study_run.py")
        command = [sys.executable, program, *arguments, "--samples", str(self.samples)]
        paths = os.pathsep.join(p for p in [str(ROOT), os.environ.get("PYTHONPATH", "")] if p)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        with (self.work / f"{name}.log").open("a", encoding="utf-8") as log:
            ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        if ended.returncode:
            raise RuntimeError(f"{name} failed; see {self.work / f'{name}.log'}")
        metrics: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
        return metrics


def with_spread(values: list[float], sign: str = "") -> str:
    """Format the mean over seeds, with the standard deviation if there are several."""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.3f}{spread}"
