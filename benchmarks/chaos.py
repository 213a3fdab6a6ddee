"""One run under many faults at random moments on a cluster of two nodes; it must end as if nothing had happened.

A driver that has exited is started again with the same command, as its user or Slurm would do, and a lost node comes
back. In the end the parameters must equal those of the undisturbed run bit for bit, every position must have been
learned from exactly once, and MLflow must have every point of every curve exactly once. Needs root, since the run has a
small disk of its own, and the second node is in a network namespace.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from chaos_faults import KINDS, Kind
from chaos_testbed import BATCH, SAVE, Testbed
from common import JsonOption, machine, quick_option, report

from mtgen.config import load
from mtgen.tracking.tracker import send_pending
from mtgen.training.sample_log import LogSegment, history, read_segments

IMAGES_BETWEEN_GROUPS = 2 * SAVE
"""Images of undisturbed training between two groups of faults, on average."""
IMAGES_PER_FAULT = 4 * SAVE
"""Images in the run's length per fault: enough that the run, which continues during some faults, outlasts them all."""
IMAGES_AT_END = 50 * SAVE
"""Further images at the end: restarting a server takes a while, in which a fast machine trains on."""
NEW_GROUP_PROBABILITY = 0.4
"""Fraction of faults that wait until training has resumed; the others follow the previous fault, whatever happens."""
MAX_DELAY = 30.0
"""Maximum delay in seconds between two faults of a group."""
QUICK = (
    "worker killed",
    "SIGTERM to the driver",
    "disk full in a checkpoint",
    "killed, byte of newest checkpoint flipped",
    "MLflow's server killed",
)
"""Kinds of faults of `--quick`."""
DETERMINISTIC_METRICS = ("loss", "gradient", "balancing", "learning_rate", "schedule", "val")
"""Prefixes of the metrics whose values must not depend on faults."""


@dataclass
class Fault:
    """One fault of the schedule, and its cost.

    Attributes:
        at: images of undisturbed training before it; `None`: it follows the previous fault.
        wait: seconds after the previous fault.
        before, after: numbers of the log segments with the last steps before it and with the first steps after it.
        struck: its time, in seconds since 1970.
        felt: whether a lasting fault has ended the run and was repaired.
    """

    kind: Kind
    at: int | None
    wait: float
    before: int = 0
    after: int = 0
    struck: float = 0.0
    felt: bool = False

    def recovery_seconds(self, segments: dict[int, LogSegment]) -> float | None:
        """Seconds from the fault, or from the last step if training outlived it for a while, to the first new step."""
        if self.before == self.after:
            return None
        last = max((when for when, _ in segments[self.before].steps), default=self.struck)
        return min(when for when, _ in segments[self.after].steps) - max(self.struck, last)

    def __str__(self) -> str:
        return f"{f'{self.at:,} images' if self.at is not None else f'{self.wait:.0f} s':>12} later: {self.kind.name}"


def recomputed_images(segments: dict[int, LogSegment], before: int, after: int) -> int:
    """Images that were learned from again between two segments of a run."""
    there = [segments[number] for number in sorted(segments) if before <= number <= after]
    return sum(max((p[-1] + 1 for _, p in one.steps), default=one.begin) - two.begin for one, two in pairwise(there))


def schedule(faults: int, rng: random.Random, names: tuple[str, ...]) -> list[list[Fault]]:
    """Random schedule with equal counts of every kind, plus or minus one; faults of a group share a recovery."""
    kinds = [kind for kind in KINDS if kind.name in names]
    chosen: list[Kind] = []
    while len(chosen) < faults:
        chosen += rng.sample(kinds, len(kinds))
    groups: list[list[Fault]] = []
    for kind in chosen[:faults]:
        wait = rng.uniform(0, MAX_DELAY)
        if not groups or rng.random() < NEW_GROUP_PROBABILITY:
            groups.append([Fault(kind, BATCH * rng.randrange(2 * IMAGES_BETWEEN_GROUPS // BATCH), 0.0)])
        else:
            groups[-1].append(Fault(kind, None, wait))
    return groups


def endure(bed: Testbed, group: list[Fault], rng: random.Random) -> None:
    """Let the run train until the first fault, inject the group's faults, and wait until training has resumed."""
    at = bed.position + (group[0].at or 0)
    bed.until(lambda: bed.position >= at or bed.ended, bed.keep_going, f"training reaches {at} images")

    def repair(status: int) -> None:
        for fault in group:
            if fault.struck and status in fault.kind.exit_statuses:
                fault.kind.repair(bed)
                fault.felt, fault.before = True, bed.segment[0]

    def over() -> bool:
        struck = [fault for fault in group if fault.kind.interrupts]
        return all(bed.segment[0] > fault.before and (fault.felt or not fault.kind.exit_statuses) for fault in struck)

    bed.on_driver_exit = repair
    for fault in group:
        until = time.monotonic() + fault.wait
        bed.until(
            lambda until=until: bed.ended or (time.monotonic() >= until and bed.heartbeats()),
            bed.keep_going,
            "workers have started",
        )
        if bed.ended:
            raise RuntimeError("the run ended before all faults were injected")
        fault.before, fault.struck = bed.segment[0], time.time()
        print(f"{time.strftime('%H:%M:%S')} at {bed.position:,} images: {fault.kind.name}", flush=True)
        fault.kind.inject(bed, rng)
    bed.until(over, bed.keep_going, f"training resumes after: {group[-1].kind.name}")
    for fault in group:
        fault.after = bed.segment[0] if fault.kind.interrupts else fault.before
    number, begin, _ = bed.segment
    now = time.strftime("%H:%M:%S")
    print(f"{now} resumed from {begin:,} images, segment {number}, driver {bed.starts}", flush=True)


def run_facts(bed: Testbed) -> dict[str, Any]:
    """What `mtgen inspect` says about the finished run."""
    out = bed.folder / "facts.json"
    command = [sys.executable, "-m", "mtgen.cli", "inspect", str(bed.run), "--json", str(out)]
    subprocess.run(command, env=bed.environment, check=True, capture_output=True)
    return dict(json.loads(out.read_text(encoding="utf-8")))


def curves(bed: Testbed) -> dict[str, list[tuple[int, float]]]:
    """Curves of the run in MLflow's store, (images, value) by metric, after pending rows were sent."""
    from mlflow import MlflowClient

    os.environ["MLFLOW_TRACKING_URI"] = bed.tracking
    config = load(bed.run / "config.yaml", [])
    if pending := send_pending(config, bed.run, timeout=60):
        raise RuntimeError(f"{pending} rows never reached MLflow")
    client = MlflowClient(f"sqlite:///{bed.folder}/server.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, f"attributes.run_name = '{bed.run.name}'")
    if len(runs) != 1:
        raise RuntimeError(f"MLflow has {len(runs)} runs named {bed.run.name}")
    found = {name: client.get_metric_history(runs[0].info.run_id, name) for name in runs[0].data.metrics}
    return {name: sorted((point.step, point.value) for point in points) for name, points in found.items()}


def differences(
    calm: dict[str, Any], wild: dict[str, Any], images: int, learned: list[int], points: tuple[Any, Any]
) -> Iterator[str]:
    """Yield a line for each difference between the disturbed run and the undisturbed one.

    Args:
        calm, wild: facts of the undisturbed and the disturbed run.
        images: length of the run.
        learned: positions that the disturbed run learned from.
        points: curves of the undisturbed and the disturbed run.
    """
    for key in ("digest", "digest_averaged", "position", "steps"):
        if calm[key] != wild[key]:
            yield f"{key}: {wild[key]}, undisturbed {calm[key]}"
    if learned != list(range(images)):
        missing, repeated = images - len(set(learned)), len(learned) - len(set(learned))
        yield f"{missing} positions were never learned from, {repeated} more than once"
    before, now = points
    for name in sorted(before.keys() | now.keys()):
        calm_points, wild_points = before.get(name, []), now.get(name, [])
        if len({images for images, _ in wild_points}) != len(wild_points):
            yield f"MLflow has duplicate points of {name}"
        if name.startswith(DETERMINISTIC_METRICS) and calm_points != wild_points:
            yield f"MLflow's curve of {name} differs: {len(wild_points)} points, undisturbed {len(calm_points)}"


def useful_seconds(segments: dict[int, LogSegment]) -> float:
    """Seconds of the steps whose work was kept; a segment's first step does not count, since its start is unknown."""
    total = 0.0
    for number, segment in segments.items():
        until = min((later.begin for later in segments.values() if later.number > number), default=sys.maxsize)
        times = sorted(when for when, positions in segment.steps if positions[-1] < until)
        total += times[-1] - times[0] if times else 0.0
    return total


def rows(faults: list[Fault], segments: dict[int, LogSegment]) -> Iterator[dict[str, Any]]:
    """Yield one row for each kind of fault, and one for all."""
    groups = {kind.name: [fault for fault in faults if fault.kind is kind] for kind in KINDS}
    for name, group in [*groups.items(), ("all", faults)]:
        if group:
            seconds = [s for fault in group if (s := fault.recovery_seconds(segments)) is not None]
            images = [
                recomputed_images(segments, fault.before, fault.after) for fault in group if fault.kind.interrupts
            ]
            yield {
                "name": name,
                "faults": len(group),
                "median_s_to_recover": statistics.median(seconds) if seconds else None,
                "max_s_to_recover": max(seconds, default=None),
                "median_images_recomputed": statistics.median(images) if images else None,
                "max_images_recomputed": max(images, default=None),
                "each_s_to_recover": seconds,
            }


def undisturbed(bed: Testbed, images: int, seed: int, hang: float) -> tuple[dict[str, Any], Any, float]:
    """Train the run without faults; returns its facts, its curves, and the images/s from its first to its last step."""
    bed.begin("calm", images, seed, hang)
    bed.until(lambda: bed.ended, bed.keep_going, "the undisturbed run ends")
    segment, *others = read_segments(bed.run)
    if others:
        log = (bed.run / "log.txt").read_text(encoding="utf-8").splitlines()[-40:]
        problem = f"the undisturbed run was interrupted {len(others)} times; try a larger --hang than {hang:g}"
        raise SystemExit("\n".join([*log, problem]))
    times = sorted(when for when, _ in segment.steps)
    return run_facts(bed), curves(bed), images / (times[-1] - times[0])


@dataclass
class Outcome:
    """Result of both runs.

    Attributes:
        faults: the injected faults.
        segments: log segments of the disturbed run, by number.
        wrong: differences between the two runs, one line each.
        about: facts about the disturbed run, for the JSON.
    """

    faults: list[Fault]
    segments: dict[int, LogSegment]
    wrong: list[str]
    about: dict[str, Any]


def run_both(
    bed: Testbed, groups: list[list[Fault]], rng: random.Random, seed: int, hang: float, minutes: float
) -> Outcome:
    """Train the run without faults, then with them, and compare."""
    images = run_length(groups)
    faults: list[Fault] = []
    calm, calm_curves, speed = undisturbed(bed, images, seed, hang)
    print(f"undisturbed: {speed:,.0f} images/s", flush=True)
    begin = time.time()
    bed.begin("wild", images, seed, hang)
    for group in groups:
        if time.time() - begin > 60 * minutes:
            print("time limit reached: the rest of the schedule is skipped", flush=True)
            break
        endure(bed, group, rng)
        faults += group
    bed.until(lambda: bed.ended, bed.keep_going, "the disturbed run ends")
    seconds, segments = time.time() - begin, {segment.number: segment for segment in read_segments(bed.run)}
    wrong = list(differences(calm, run_facts(bed), images, history(bed.run), (calm_curves, curves(bed))))
    about = {
        "nodes": 2,
        "workers": 2,
        "images": images,
        "images_per_second_undisturbed": speed,
        "seconds": seconds,
        "load_after": [round(value, 1) for value in psutil.getloadavg()],
        "images_recomputed": recomputed_images(segments, 0, max(segments)),
        "goodput": useful_seconds(segments) / seconds,
        "parts": len(segments),
        "drivers": bed.starts,
        "seed": seed,
        "heartbeat_timeout": hang,
        "schedule": [str(fault) for fault in faults],
    }
    return Outcome(faults, segments, wrong, about)


def run_length(groups: list[list[Fault]]) -> int:
    """Images that the run trains."""
    return IMAGES_PER_FAULT * sum(map(len, groups)) + IMAGES_BETWEEN_GROUPS + IMAGES_AT_END


def main(
    count: Annotated[int, typer.Option("--faults", min=1, help="number of faults")] = 40,
    seed: Annotated[int, typer.Option(help="random seed of the schedule and of the runs")] = 0,
    hang: Annotated[float, typer.Option(help="train.heartbeat_timeout of the runs; a busy machine needs more")] = 15.0,
    minutes: Annotated[float, typer.Option(help="inject no further fault after this many minutes")] = 600.0,
    quick: Annotated[bool, quick_option("five faults of the most common kinds")] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="only kinds whose names begin with this; may be repeated")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Train a run without faults and again with faults, and compare."""
    if os.geteuid():
        raise SystemExit("chaos.py needs root, for a small disk and for a network that can be cut")
    names = tuple(
        k.name for k in KINDS if (k.name in QUICK or not quick) and (not only or k.name.startswith(tuple(only)))
    )
    here, rng = machine(), random.Random(seed)
    groups = schedule(len(QUICK) if quick else count, rng, names)
    print(f"schedule, seed {seed}, {run_length(groups):,} images:", flush=True)
    print(*(fault for group in groups for fault in group), sep="\n", flush=True)
    bed = Testbed(Path(tempfile.mkdtemp(prefix="chaos-")))
    try:
        outcome = run_both(bed, groups, rng, seed, hang, minutes)
    finally:
        bed.close()
    about, table = outcome.about, list(rows(outcome.faults, outcome.segments))
    report("Faults survived", here | {"testbed": about, "wrong": outcome.wrong}, table, json_file)
    print(
        f"{len(outcome.faults)} faults in {about['seconds'] / 60:.0f} min; "
        f"{about['images']:,} images, {about['images_recomputed']:,} of them recomputed; "
        f"resumed {about['parts'] - 1} times, driver started {about['drivers']} times; "
        f"goodput {about['goodput']:.2f}; load {about['load_after']}"
    )
    if outcome.wrong:
        raise SystemExit("\n".join(outcome.wrong))
    print("parameters equal the undisturbed run's bit for bit; every position once; every point of every curve once")


if __name__ == "__main__":
    typer.run(main)
