"""One run under many faults, at random moments, on a cluster of two nodes: it has to end as if nothing had happened.

A driver that has ended is started again with the same command, as its user or Slurm would; a node that was lost comes back. In the end the
parameters have to equal those of the undisturbed run bit for bit, every position has to be learned from exactly once, and MLflow has to
have every point of every curve exactly once. Needs root: the run lies on a small disk of its own, the second node in a network of its own.
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
from common import machine, report

from mtgen.config import load
from mtgen.tracking.tracker import send_pending
from mtgen.training.sample_log import LogSegment, history, read_segments

BETWEEN = 2 * SAVE
"""Images of undisturbed training between two groups of faults, on average."""
A_FAULT = 4 * SAVE
"""Images of the run's length for each fault: enough that the run, which goes on beside some of them, outlasts them all."""
BESIDE = 50 * SAVE
"""And so many at its end: a server that starts again takes a while, and the run of a fast machine goes far in it."""
ALONE, LATEST = 0.4, 30.0
"""Share of the faults that wait until training goes on; the others strike up to so many seconds after the one before, whatever goes on."""
QUICK = (
    "worker killed",
    "SIGTERM to the driver",
    "disk full in a checkpoint",
    "killed, byte of newest checkpoint flipped",
    "MLflow's server killed",
)


@dataclass
class Fault:
    """One fault of the schedule, and what it cost.

    Attributes:
        at: images that the run trains undisturbed before it strikes; `None`: shortly after the one before.
        wait: seconds after the one before.
        before, after: numbers of the run's parts, the last that made steps before it struck and the first that did when it was over.
        struck: when, in seconds since 1970.
        felt: whether a fault that lasts has ended the run, and was taken away.
    """

    kind: Kind
    at: int | None
    wait: float
    before: int = 0
    after: int = 0
    struck: float = 0.0
    felt: bool = False

    def recovered(self, parts: dict[int, LogSegment]) -> float | None:
        """Seconds from the fault (for one that training outlives for a while: from its last step) to the first new step."""
        if self.before == self.after:
            return None
        last = max((when for when, _ in parts[self.before].steps), default=self.struck)
        return min(when for when, _ in parts[self.after].steps) - max(self.struck, last)

    def __str__(self) -> str:
        return f"{f'{self.at:,} images' if self.at is not None else f'{self.wait:.0f} s':>12} later: {self.kind.name}"


def recomputed(parts: dict[int, LogSegment], before: int, after: int) -> int:
    """Images that were learned from, and had to be once more, between two parts of a run."""
    there = [parts[number] for number in sorted(parts) if before <= number <= after]
    return sum(max((p[-1] + 1 for _, p in one.steps), default=one.begin) - two.begin for one, two in pairwise(there))


def schedule(faults: int, rng: random.Random, names: tuple[str, ...]) -> list[list[Fault]]:
    """Every kind as often as every other, give or take one, in random order at random moments; those that share a recovery in one group."""
    kinds = [kind for kind in KINDS if kind.name in names]
    chosen: list[Kind] = []
    while len(chosen) < faults:
        chosen += rng.sample(kinds, len(kinds))
    groups: list[list[Fault]] = []
    for kind in chosen[:faults]:
        wait = rng.uniform(0, LATEST)
        if not groups or rng.random() < ALONE:
            groups.append([Fault(kind, BATCH * rng.randrange(2 * BETWEEN // BATCH), 0.0)])
        else:
            groups[-1].append(Fault(kind, None, wait))
    return groups


def endure(bed: Testbed, group: list[Fault], rng: random.Random) -> None:
    """Let the run train until the moment of the first fault, strike, and wait until training goes on."""
    at = bed.position + (group[0].at or 0)
    bed.until(lambda: bed.position >= at or bed.ended, bed.keep_going, f"training comes to {at} images")

    def mend(status: int) -> None:
        for fault in group:
            if fault.struck and status in fault.kind.ends:
                fault.kind.mend(bed)
                fault.felt, fault.before = True, bed.part[0]

    def over() -> bool:
        struck = [fault for fault in group if fault.kind.interrupts]
        return all(bed.part[0] > fault.before and (fault.felt or not fault.kind.ends) for fault in struck)

    bed.after_end = mend
    for fault in group:
        until = time.monotonic() + fault.wait
        bed.until(
            lambda until=until: bed.ended or (time.monotonic() >= until and bed.beats()),
            bed.keep_going,
            "there are workers",
        )
        if bed.ended:
            raise RuntimeError("the run was over before its faults were")
        fault.before, fault.struck = bed.part[0], time.time()
        print(f"{time.strftime('%H:%M:%S')} at {bed.position:,} images: {fault.kind.name}", flush=True)
        fault.kind.strike(bed, rng)
    bed.until(over, bed.keep_going, f"training goes on after: {group[-1].kind.name}")
    for fault in group:
        fault.after = bed.part[0] if fault.kind.interrupts else fault.before
    print(
        f"{time.strftime('%H:%M:%S')} on from {bed.part[1]:,} images, part {bed.part[0]}, driver {bed.starts}",
        flush=True,
    )


def facts(bed: Testbed) -> dict[str, Any]:
    """What `mtgen inspect` says of the run that has ended."""
    out = bed.place / "facts.json"
    words = [sys.executable, "-m", "mtgen.cli", "inspect", str(bed.run), "--json", str(out)]
    subprocess.run(words, env=bed.environment, check=True, capture_output=True)
    return dict(json.loads(out.read_text(encoding="utf-8")))


def curves(bed: Testbed) -> dict[str, list[tuple[int, float]]]:
    """Name of a metric -> (images, value) of every point that MLflow's store has of the run, after what was kept is sent."""
    from mlflow import MlflowClient

    os.environ["MLFLOW_TRACKING_URI"] = bed.tracking
    config = load(bed.run / "config.yaml", [])
    if kept := send_pending(config, bed.run, timeout=60):
        raise RuntimeError(f"{kept} rows never came to MLflow")
    client = MlflowClient(f"sqlite:///{bed.place}/server.db")
    runs = client.search_runs(
        [e.experiment_id for e in client.search_experiments()], f"attributes.run_name = '{bed.run.name}'"
    )
    if len(runs) != 1:
        raise RuntimeError(f"MLflow has {len(runs)} runs of {bed.run.name}")
    found = {name: client.get_metric_history(runs[0].info.run_id, name) for name in runs[0].data.metrics}
    return {name: sorted((point.step, point.value) for point in points) for name, points in found.items()}


def differences(
    calm: dict[str, Any], wild: dict[str, Any], images: int, learned: list[int], points: tuple[Any, Any]
) -> Iterator[str]:
    """In what the disturbed run is not as the undisturbed one."""
    for key in ("digest", "digest_averaged", "position", "steps"):
        if calm[key] != wild[key]:
            yield f"{key}: {wild[key]}, undisturbed {calm[key]}"
    if learned != list(range(images)):
        yield f"{images - len(set(learned))} positions were never learned from, {len(learned) - len(set(learned))} more than once"
    before, now = points
    for name in sorted(before.keys() | now.keys()):
        steps = [images for images, _ in now.get(name, [])]
        if len(set(steps)) != len(steps):
            yield f"MLflow has points of {name} twice"
        if name.startswith(("loss", "gradient", "balancing", "learning_rate", "test")) and before.get(name) != now.get(
            name
        ):
            yield f"MLflow's curve of {name} is another: {len(now.get(name, []))} points, undisturbed {len(before.get(name, []))}"


def useful(parts: dict[int, LogSegment]) -> float:
    """Seconds of the steps whose work was kept; the first step of a part counts for none, since nobody knows when it began."""
    total = 0.0
    for number, part in parts.items():
        until = min((later.begin for later in parts.values() if later.number > number), default=sys.maxsize)
        times = sorted(when for when, positions in part.steps if positions[-1] < until)
        total += times[-1] - times[0] if times else 0.0
    return total


def rows(faults: list[Fault], parts: dict[int, LogSegment]) -> Iterator[dict[str, Any]]:
    """A row for each kind, and one for all."""
    groups = {kind.name: [fault for fault in faults if fault.kind is kind] for kind in KINDS}
    for name, group in [*groups.items(), ("all", faults)]:
        if group:
            seconds = [s for fault in group if (s := fault.recovered(parts)) is not None]
            images = [recomputed(parts, fault.before, fault.after) for fault in group if fault.kind.interrupts]
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
    """The same run without faults: facts, curves, and images/s between its first and its last step."""
    bed.begin("calm", images, seed, hang)
    bed.until(lambda: bed.ended, bed.keep_going, "the undisturbed run ends")
    part, *others = read_segments(bed.run)
    if others:
        said = (bed.run / "log.txt").read_text(encoding="utf-8").splitlines()
        raise SystemExit(
            "\n".join(
                [
                    *said[-40:],
                    f"the undisturbed run was disturbed {len(others)} times: is the machine too busy for --hang {hang:g}?",
                ]
            )
        )
    times = sorted(when for when, _ in part.steps)
    return facts(bed), curves(bed), images / (times[-1] - times[0])


def main(
    count: Annotated[int, typer.Option("--faults", min=1, help="how many faults")] = 40,
    seed: Annotated[int, typer.Option(help="of the schedule, and of the runs")] = 0,
    hang: Annotated[float, typer.Option(help="train.heartbeat_timeout of the runs; a busy machine needs more")] = 15.0,
    minutes: Annotated[float, typer.Option(help="no further fault strikes after so many minutes")] = 600.0,
    quick: Annotated[bool, typer.Option("--quick", help="five faults of the commonest kinds")] = False,
    only: Annotated[list[str] | None, typer.Option(help="only the kinds whose names begin so; may be repeated")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the numbers to this file")] = None,
) -> None:
    """Train one run undisturbed and once more under faults, and compare."""
    if os.geteuid():
        raise SystemExit("needs root: for a small disk, and for a network whose cable can be pulled out")
    names = tuple(
        k.name for k in KINDS if (k.name in QUICK or not quick) and (not only or k.name.startswith(tuple(only)))
    )
    here, rng = machine(), random.Random(seed)
    groups = schedule(len(QUICK) if quick else count, rng, names)
    images = A_FAULT * sum(map(len, groups)) + BETWEEN + BESIDE
    print(
        f"schedule, seed {seed}, {images:,} images:",
        *(fault for group in groups for fault in group),
        sep="\n",
        flush=True,
    )
    bed, faults = Testbed(Path(tempfile.mkdtemp(prefix="chaos-"))), list[Fault]()
    try:
        calm, before, speed = undisturbed(bed, images, seed, hang)
        print(f"undisturbed: {speed:,.0f} images/s", flush=True)
        begin = time.time()
        bed.begin("wild", images, seed, hang)
        for group in groups:
            if time.time() - begin > 60 * minutes:
                print("time is over: the rest of the schedule is left out", flush=True)
                break
            endure(bed, group, rng)
            faults += group
        bed.until(lambda: bed.ended, bed.keep_going, "the disturbed run ends")
        total, parts = time.time() - begin, {part.number: part for part in read_segments(bed.run)}
        wrong = list(differences(calm, facts(bed), images, history(bed.run), (before, curves(bed))))
        load = [round(value, 1) for value in psutil.getloadavg()]
    finally:
        bed.close()
    about = {
        "nodes": 2,
        "workers": 2,
        "images": images,
        "images_per_second_undisturbed": speed,
        "seconds": total,
        "load_after": load,
    }
    about |= {
        "images_recomputed": recomputed(parts, 0, max(parts)),
        "goodput": useful(parts) / total,
        "parts": len(parts),
    }
    about |= {
        "drivers": bed.starts,
        "seed": seed,
        "heartbeat_timeout": hang,
        "schedule": [str(fault) for fault in faults],
    }
    report("Faults survived", here | {"testbed": about, "wrong": wrong}, list(rows(faults, parts)), json_file)
    print(
        f"{len(faults)} faults in {total / 60:.0f} min; {images:,} images, {about['images_recomputed']:,} of them recomputed; "
        f"the run went on {len(parts) - 1} times, its driver was started {bed.starts} times; goodput {about['goodput']:.2f}; load {load}"
    )
    if wrong:
        raise SystemExit("\n".join(wrong))
    print("parameters equal the undisturbed run's bit for bit; every position once; every point of every curve once")


if __name__ == "__main__":
    typer.run(main)
