"""What studies have in common: many trainings, each a process of its own on one thread, whose results are kept.

A result that is there already is not measured again, so that a study can be stopped at any time and goes on with the same command; two
commands with one `--work` share the runs between them.
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

READING = ("classification", "segmentation", "detection")
TELLING = ("caption", "sound")
"""Conditions that are left out: they would tell the class of every image, however few classes are known."""

NUMBERS = {
    "classification": ("classification", "accuracy"),
    "segmentation": ("segmentation", "mIoU"),
    "detection": ("detection", "AP50"),
    "cas": ("generation", "CAS"),
    "diversity": ("generation", "diversity"),
}
"""What is measured -> the task whose number it is, and its name."""


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        variant: "together", or the one task that is trained alone.
        seed: of the run.
        share: of the training samples, how many have their class, their mask, their boxes.
        policy: what its name ends with, where there are several of the kind.
        settings: further ones over the configuration's.
    """

    variant: str
    seed: int
    share: float = 1.0
    policy: str = ""
    settings: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What it is, in words."""
        return (
            f"{self.share:6.1%} of labels, seed {self.seed}, {self.variant}{f', {self.policy}' if self.policy else ''}"
        )

    def overrides(self, tasks: list[str], conditions: list[str], images: int) -> list[str]:
        """Its settings over the configuration's; a task alone is as pure as it gets, so reading alone is supervised training."""
        known = {name: self.share for name in ("class", "mask", "boxes")}
        together = self.variant == "together"
        kept = tasks if together else [self.variant]
        asked = [c for c in conditions if c not in TELLING] if together else ["class"] * (self.variant == "generation")
        return [
            *(f"tasks.{task}.weight=0" for task in tasks if task not in kept),
            *(f"conditions.{condition}.probability=0" for condition in conditions if condition not in asked),
            *(["conditions.class.probability=0.8"] if "class" in asked else []),
            f"data.keep_labels={json.dumps(known)}",
            f"seed={self.seed}",
            f"train.images={images}",
            f"train.log_every={max(images // 10, 1)}",
            f"checkpoint.every={max(images // 4, 1)}",
            f"evaluate.every={2 * images}",
            *self.settings,
        ]


def base_settings(data: Path | None, work: Path, overrides: list[str] | None) -> list[str]:
    """What all runs have over the configuration: the data (default: digits), what the user says, and one process each."""
    return [f"data.path={digits(data, work)}", *(overrides or []), "workers=0", "device=cpu"]


@dataclass(frozen=True)
class Study:
    """Trainings of one configuration, of one length.

    Attributes:
        config: the configuration's file, and `base` what all runs have over it.
        images: that each run sees.
        samples: images to generate for CAS and diversity.
        work: folder in which runs and results are kept.
        parallel: runs at a time.
    """

    config: Path
    base: list[str]
    images: int
    samples: int
    work: Path
    parallel: int

    def results(self, runs: Sequence[Run]) -> list[dict[str, Any]]:
        """A row for every run, in their order: what it is, its minutes, and those of `NUMBERS` that it has."""
        with ThreadPoolExecutor(self.parallel) as pool:
            waiting = [pool.submit(self._result, run) for run in runs]
            try:
                rows = [future.result() for future in waiting]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return [row or self._result(run, wait=True) for run, row in zip(runs, rows, strict=True)]

    def _result(self, run: Run, wait: bool = False) -> dict[str, Any]:
        """The run's row, from `work` where it is there already; empty if another command is at it, unless that is to be waited for."""
        settings = load(self.config, self.base)
        words = run.overrides(list(settings.task_settings()), list(settings.condition_settings()), self.images)
        text = json.dumps(
            [load(self.config, ["name=x", *self.base, *words]).model_dump(mode="json"), self.samples], sort_keys=True
        )
        name = f"{run.variant}-{run.share:g}-{run.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        kept = self.work / f"{name}.json"
        with open(kept.with_suffix(".lock"), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                return {}
            if not kept.is_file():
                begin = time.monotonic()
                numbers = self._measured(name, words)
                what = {"variant": run.variant, "policy": run.policy, "share": run.share, "seed": run.seed}
                part = kept.with_suffix(".part")
                part.write_text(
                    json.dumps({**what, "minutes": (time.monotonic() - begin) / 60, **numbers}) + "\n", encoding="utf-8"
                )
                part.rename(kept)
        row: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        found = ", ".join(f"{NUMBERS[key][1]} {row[key]:.3f}" for key in NUMBERS if key in row)
        print(f"{row['minutes']:5.1f} min  {run.title}: {found}", flush=True)
        return row

    def _measured(self, name: str, words: list[str]) -> dict[str, float]:
        """Train and measure, in a process of its own."""
        given = [*self.base, *words, f"name={name}", f"runs={self.work}/runs"]
        command = [
            sys.executable,
            str(ROOT / "benchmarks/study_run.py"),
            str(self.config),
            *given,
            "--samples",
            str(self.samples),
        ]
        paths = os.pathsep.join(p for p in [str(ROOT), os.environ.get("PYTHONPATH", "")] if p)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        with (self.work / f"{name}.log").open("a", encoding="utf-8") as log:
            ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        if ended.returncode:
            raise RuntimeError(f"{name} failed; look into {self.work / f'{name}.log'}")
        numbers: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
        return numbers


def with_spread(values: list[float], sign: str = "") -> str:
    """The mean, and the standard deviation over the seeds where there are several."""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.3f}{spread}"
