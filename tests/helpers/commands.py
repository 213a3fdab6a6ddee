"""Commands of mtgen as a shell starts them, on a small data set, and what is left of their runs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from mtgen.shards.make import make
from mtgen.tracking.journal import JournalRow, read_journal

ROOT = Path(__file__).resolve().parents[2]
IMAGES, EVERY, LOG = 640, 160, 80  # length of a run, images between two checkpoints and between two rows of numbers
SEED = 3


def furnish(folder: Path) -> Path:
    """Put a small data set and a configuration, run.yaml, into a folder that will hold the runs too."""
    make("shapes", folder / "data", resolution=16, train=400, test=100)
    configuration = {
        "name": "run",
        "runs": str(folder / "runs"),
        "device": "cpu",
        "precision": "fp32",
        "seed": SEED,
        "workers": 0,
        "resolution": 8,
        "batch_size": 16,
        "data": {"path": str(folder / "data")},
        "generator": {"widths": [8, 8], "latent": 4},
        "discriminator": {"widths": [8, 8], "decoder": 8, "embedding": 8},
        "tasks": {name: {} for name in ("generation", "classification", "segmentation", "reconstruction")},
        "balancing": {
            "weighting": "gradvac",
            "discriminator": "famo",
            "ema_half_life": 50,
            "warmup": 100,
        },  # what they remember has to survive too
        "train": {"images": IMAGES, "warmup": 0, "log_every": LOG},
        "checkpoint": {"every": EVERY, "keep": 10},
        "evaluate": {"every": 10**9},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    return folder


class Command:
    """A command of mtgen in a process group of its own, as a shell starts it."""

    def __init__(self, place: Path, *words: str, **variables: str) -> None:
        self.log = place / f"output-{time.monotonic_ns()}.txt"
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "MTGEN_CACHE": str(place / "cache"),
            "OMP_WAIT_POLICY": "PASSIVE",
            **variables,
        }
        environment.pop(
            "OMP_NUM_THREADS", None
        )  # in one process as under Ray: as many threads as there are CPUs, or sums round otherwise
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mtgen.cli", *words],
                stdout=file,
                stderr=file,
                cwd=place,
                env=environment,
                process_group=0,
            )

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait(self) -> "Command":
        self.process.wait(timeout=300)
        return self

    @property
    def status(self) -> int | None:
        return self.process.returncode

    @property
    def errors(self) -> list[str]:
        return [line for line in self.said.splitlines() if line.startswith("error: ")]

    def family(self) -> list[psutil.Process]:
        """All processes that this one and its like have started: Ray's cluster, the workers, the sender."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def workers(self) -> list[psutil.Process]:
        return [process for process in self.family() if any("RayTrainWorker" in word for word in process.cmdline()[:1])]

    def until(self, reached: Callable[[], Any]) -> Any:
        """Wait for something to come true while the command runs."""
        while not (value := reached()):
            assert self.process.poll() is None, f"ended too early, with {self.status}:\n{self.said}"
            time.sleep(0.02)
        return value


@dataclass
class Ended:
    """A run that has ended: what `mtgen inspect` says of it, and its journal."""

    facts: dict[str, Any]
    rows: list[JournalRow]

    @property
    def losses(self) -> list[tuple[int, dict[str, float]]]:
        """Images seen, losses and gradient norms of each row of numbers, in the order of the journal."""
        return [
            (row.images, here)
            for row in self.rows
            if (here := {k: v for k, v in row.values.items() if k.startswith(("loss", "gradient"))})
        ]

    @property
    def starts(self) -> list[int]:
        return [row.images for row in self.rows if row.start]


def look(place: Path, name: str) -> Ended:
    facts = place / f"{name}.json"
    command = Command(place, "inspect", str(place / "runs" / name), "--json", str(facts)).wait()
    assert command.status == 0, command.said
    return Ended(json.loads(facts.read_text(encoding="utf-8")), list(read_journal(place / "runs" / name)))


def checkpoints(place: Path, name: str) -> list[Path]:
    return sorted((place / "runs" / name / "checkpoints").glob("[0-9]*"))


def trained(place: Path, name: str, workers: int, *words: str) -> Ended:
    command = Command(place, "train", "run.yaml", f"name={name}", f"workers={workers}", *words).wait()
    assert command.status == 0, command.said
    return look(place, name)
