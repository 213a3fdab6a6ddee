"""One run under many faults, at random moments, on a cluster of two nodes: it has to end as if nothing had happened.

A driver that has ended is started again with the same command, as its user or Slurm would; a node that was lost comes back. In the end the
parameters have to equal those of the undisturbed run bit for bit, every position has to be learnt from exactly once, and MLflow has to
have every point of every curve exactly once. Needs root, since the run lies on a small disk of its own.
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
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from chaos_faults import KINDS, Kind
from chaos_testbed import BATCH, SAVE, Testbed
from common import machine, report

from mtgen.config import load
from mtgen.tracking import send_kept
from mtgen.training.consumed import Part, history, read_parts

BETWEEN = 2 * SAVE
"""Images between two faults, on average."""
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
        at: images seen at which it strikes.
        parts: numbers of the run's parts before it struck and after it was over.
        struck: when, in seconds since 1970.
        drivers: how often the driver had to be started again.
    """

    kind: Kind
    at: int
    parts: tuple[int, int] = (0, 0)
    struck: float = 0.0
    drivers: int = 0

    def recovered(self, parts: list[Part]) -> float | None:
        """Seconds from the fault (for one that training outlives for a while: from its last step) to the first new step."""
        before, after = self.parts
        if before == after:
            return None
        last = max((when for when, _ in parts[before].steps), default=self.struck)
        return min(when for when, _ in parts[after].steps) - max(self.struck, last)

    def recomputed(self, parts: list[Part]) -> int:
        """Images that were learnt from, and had to be once more."""
        before, after = self.parts
        return sum(end(parts[number]) - parts[number + 1].begin for number in range(before, after))


def end(part: Part) -> int:
    """Position up to which all workers had trained."""
    return max((positions[-1] for _, positions in part.steps), default=part.begin - 1) + 1


def schedule(faults: int, rng: random.Random, names: tuple[str, ...]) -> list[Fault]:
    """Every kind as often as every other, give or take one, in random order at random moments."""
    kinds = [kind for kind in KINDS if kind.name in names]
    chosen: list[Kind] = []
    while len(chosen) < faults:
        chosen += rng.sample(kinds, len(kinds))
    return [Fault(kind, BETWEEN * (number + 1) + BATCH * rng.randrange(BETWEEN // BATCH)) for number, kind in enumerate(chosen[:faults])]


def endure(bed: Testbed, fault: Fault, rng: random.Random) -> None:
    """Let the run come to the fault's moment, strike, and wait until training goes on."""
    bed.until(lambda: bed.position >= fault.at and len(bed.beats()) == 2, bed.keep_going, f"training comes to {fault.at} images")
    if bed.ended:
        raise RuntimeError("the run was over before its faults were")
    before, drivers, fault.struck = bed.part[0], bed.starts, time.time()
    fault.kind.strike(bed, rng)

    def meanwhile() -> None:
        if bed.driver is not None and bed.driver.status is not None:
            fault.kind.mend(bed)
        bed.keep_going()

    if fault.kind.interrupts:
        bed.until(lambda: bed.part[0] > before, meanwhile, f"training goes on after: {fault.kind.name}")
    fault.kind.mend(bed)
    fault.parts, fault.drivers = (before, bed.part[0]), bed.starts - drivers
    print(
        f"{time.time() - fault.struck:6.1f} s at {fault.at:,}: {fault.kind.name} (drivers {fault.drivers}, part {fault.parts[1]})",
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
    if kept := send_kept(config, bed.run, timeout=60):
        raise RuntimeError(f"{kept} rows never came to MLflow")
    client = MlflowClient(f"sqlite:///{bed.place}/server.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()], f"attributes.run_name = '{bed.run.name}'")
    if len(runs) != 1:
        raise RuntimeError(f"MLflow has {len(runs)} runs of {bed.run.name}")
    found = {name: client.get_metric_history(runs[0].info.run_id, name) for name in runs[0].data.metrics}
    return {name: sorted((point.step, point.value) for point in points) for name, points in found.items()}


def differences(calm: dict[str, Any], wild: dict[str, Any], images: int, learnt: list[int], points: tuple[Any, Any]) -> Iterator[str]:
    """In what the disturbed run is not as the undisturbed one."""
    for key in ("digest", "digest_averaged", "position", "steps"):
        if calm[key] != wild[key]:
            yield f"{key}: {wild[key]}, undisturbed {calm[key]}"
    if learnt != list(range(images)):
        yield f"{images - len(set(learnt))} positions were never learnt from, {len(learnt) - len(set(learnt))} more than once"
    before, now = points
    for name in sorted(before.keys() | now.keys()):
        steps = [images for images, _ in now.get(name, [])]
        if len(set(steps)) != len(steps):
            yield f"MLflow has points of {name} twice"
        if name.startswith(("loss", "gradient", "balancing", "learning_rate", "test")) and before.get(name) != now.get(name):
            yield f"MLflow's curve of {name} is another: {len(now.get(name, []))} points, undisturbed {len(before.get(name, []))}"


def useful(parts: list[Part]) -> float:
    """Seconds of the steps whose work was kept; the first step of a part counts for none, since nobody knows when it began."""
    total = 0.0
    for number, part in enumerate(parts):
        until = min((later.begin for later in parts[number + 1 :]), default=sys.maxsize)
        times = sorted(when for when, positions in part.steps if positions[-1] < until)
        total += times[-1] - times[0] if times else 0.0
    return total


def rows(faults: list[Fault], parts: list[Part]) -> Iterator[dict[str, Any]]:
    """A row for each kind, and one for all."""
    groups = {kind.name: [fault for fault in faults if fault.kind is kind] for kind in KINDS}
    for name, group in [*groups.items(), ("all", faults)]:
        if group:
            seconds = [s for fault in group if (s := fault.recovered(parts)) is not None]
            images = [fault.recomputed(parts) for fault in group]
            yield {
                "name": name,
                "faults": len(group),
                "median_s_to_recover": statistics.median(seconds) if seconds else None,
                "max_s_to_recover": max(seconds, default=None),
                "drivers_started_again": sum(fault.drivers for fault in group),
                "images_recomputed_median": statistics.median(images),
                "images_recomputed": sum(images),
            }


def undisturbed(bed: Testbed, images: int, seed: int, hang: float) -> tuple[dict[str, Any], Any, float]:
    """The same run without faults: facts, curves, and images/s between its first and its last step."""
    bed.begin("calm", images, seed, hang)
    bed.until(lambda: bed.ended, bed.keep_going, "the undisturbed run ends")
    (part,) = read_parts(bed.run)
    times = sorted(when for when, _ in part.steps)
    return facts(bed), curves(bed), images / (times[-1] - times[0])


def main(
    count: Annotated[int, typer.Option("--faults", min=1, help="how many faults")] = 40,
    seed: Annotated[int, typer.Option(help="of the schedule, and of the runs")] = 0,
    hang: Annotated[float, typer.Option(help="train.hang_seconds of the runs; a busy machine needs more")] = 15.0,
    quick: Annotated[bool, typer.Option("--quick", help="five faults of the commonest kinds")] = False,
    only: Annotated[list[str] | None, typer.Option(help="only the kinds whose names begin so; may be repeated")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the numbers to this file")] = None,
) -> None:
    """Train one run undisturbed and once more under faults, and compare."""
    if os.geteuid():
        raise SystemExit("needs root: the run lies on a small disk that is mounted for it")
    names = tuple(k.name for k in KINDS if (k.name in QUICK or not quick) and (not only or k.name.startswith(tuple(only))))
    here, rng = machine(), random.Random(seed)
    faults = schedule(len(QUICK) if quick else count, rng, names)
    images = BETWEEN * (len(faults) + 2)
    print(f"schedule, seed {seed}, {images:,} images:", *(f"{fault.at:>9,} {fault.kind.name}" for fault in faults), sep="\n", flush=True)
    bed = Testbed(Path(tempfile.mkdtemp(prefix="chaos-")))
    try:
        calm, before, speed = undisturbed(bed, images, seed, hang)
        print(f"undisturbed: {speed:,.0f} images/s", flush=True)
        begin = time.time()
        bed.begin("wild", images, seed, hang)
        for fault in faults:
            endure(bed, fault, rng)
        bed.until(lambda: bed.ended, bed.keep_going, "the disturbed run ends")
        total, parts = time.time() - begin, read_parts(bed.run)
        wrong = list(differences(calm, facts(bed), images, history(bed.run), (before, curves(bed))))
        unplanned = len(parts) - 1 - sum(fault.parts[1] - fault.parts[0] for fault in faults)
        load = [round(value, 1) for value in psutil.getloadavg()]
    finally:
        bed.close()
    about = {"nodes": 2, "workers": 2, "images": images, "images_per_second_undisturbed": speed, "seconds": total, "load_after": load}
    about |= {"goodput": useful(parts) / total, "parts": len(parts), "unplanned_restarts": unplanned, "drivers": bed.starts, "seed": seed}
    report("Faults survived", here | {"testbed": about, "wrong": wrong}, list(rows(faults, parts)), json_file)
    print(
        f"{len(faults)} faults in {total / 60:.0f} min, {images:,} images, {len(parts)} parts ({unplanned} restarts beside the faults'), "
        f"{bed.starts} drivers; goodput {about['goodput']:.2f}; load {load}"
    )
    if wrong:
        raise SystemExit("\n".join(wrong))
    print("parameters equal the undisturbed run's bit for bit; every position once; every point of every curve once")


if __name__ == "__main__":
    typer.run(main)
