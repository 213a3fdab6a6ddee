"""Images per second of mtgen's loader and of what people use instead, on one CPU each, in turns within one run.

Every measurement is a process of its own, pinned to one CPU, with everything that it starts. Peers run in a virtual environment of their
own, because their requirements break ours; without one they are left out and the table says so:

    python -m venv peers && peers/bin/pip install -r benchmarks/loaders_compared.txt
    python benchmarks/data_speed.py --peers peers
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from common import machine, report

ROOT = Path(__file__).resolve().parents[1]
HERE = "mtgen", "DALI's webdataset reader", "webdataset + Pillow", "limit: the DALI graph on bytes in memory"
PEERS = "mosaicml-streaming + Pillow", "litdata + Pillow", "limit: libjpeg-turbo decoding alone"
WORKLOADS: dict[str, tuple[str, list[str]]] = {
    "coco128, random crop + flip, to 256, mask": ("coco128", ["--size", "256", "--crop", "0.3", "--flip", "--masks"]),
    "coco128, center crop, to 256, mask": ("coco128", ["--size", "256", "--masks"]),
    "cifar10, to 32": ("cifar10", ["--size", "32", "--batch", "128"]),
    "digits, to 32": ("digits", ["--size", "32", "--batch", "128", "--components", "class"]),
    "digits with sound, to 32": ("digits", ["--size", "32", "--batch", "128", "--components", "class,sound"]),
}


def measure(name: str, python: str, data: Path, work: Path, options: list[str], seconds: float) -> dict[str, float]:
    """Run one contender; what it prints, or why it could not run."""
    command = [
        python,
        str(ROOT / "benchmarks/loaders_compared.py"),
        name,
        "--data",
        str(data),
        "--work",
        str(work),
        "--seconds",
        str(seconds),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [*command, *options], capture_output=True, text=True, env=environment, timeout=600, check=False
    )
    if ended.returncode:
        raise typer.BadParameter(
            f"{name} on {data.name}: {ended.stderr.strip().splitlines()[-1] if ended.stderr.strip() else 'no output'}"
        )
    found: dict[str, float] = json.loads(ended.stdout.strip().splitlines()[-1])
    return found


def main(
    data: Annotated[Path, typer.Option(help="folder with the data sets coco128, cifar10 and digits")] = ROOT.parent
    / "shared/data",
    peers: Annotated[Path | None, typer.Option(help="virtual environment with benchmarks/loaders_compared.txt")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="one short round")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the numbers to this file")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="default: 3, quick 1")] = None,
    seconds: Annotated[float | None, typer.Option(help="of one measurement; default: 6, quick 3")] = None,
) -> None:
    """Compare loaders on this machine."""
    here, rows = machine(), []
    rounds, seconds = rounds or (1 if quick else 3), seconds or (3 if quick else 6)
    python = {name: sys.executable for name in HERE} | (
        {name: str(peers / "bin/python") for name in PEERS} if peers else {}
    )
    with tempfile.TemporaryDirectory(prefix="mtgen-data-speed-") as temporary:
        for workload, (folder, options) in WORKLOADS.items():
            if not (data / folder).is_dir():
                print(f"left out: {workload}: there is no {data / folder}")
                continue
            work = Path(temporary) / folder
            work.mkdir(exist_ok=True)
            measured = (
                {"mtgen": python["mtgen"]} if "--components" in options else python
            )  # the peers here read images and masks alone
            found: dict[str, list[dict[str, float]]] = {name: [] for name in measured}
            for _ in range(rounds):
                for name, interpreter in measured.items():
                    found[name].append(measure(name, interpreter, data / folder, work, options, seconds))
            speed = {
                name: statistics.median(f["images_per_second"] for f in results) for name, results in found.items()
            }
            for name, results in sorted(found.items(), key=lambda item: -speed[item[0]]):
                row: dict[str, Any] = {"workload": workload, "name": name, "images_per_second": speed[name]}
                row["mtgen_is"] = f"{speed['mtgen'] / speed[name]:.2f} x"
                rows.append({**row, "rounds": [r["images_per_second"] for r in results]})
    if not peers:
        print(f"left out, for want of --peers: {', '.join(PEERS)}")
    report(f"Loading images, one CPU each, median of {rounds} rounds of {seconds:g} s", here, rows, json_file)


if __name__ == "__main__":
    typer.run(main)
