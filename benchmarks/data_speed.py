"""Images per second of mtgen's loader and of common alternatives, one at a time on one CPU.

Every measurement runs in its own process, pinned to one CPU together with everything that it starts. Beside other work,
the CPU time per image says more than the images per second. The peers need a separate virtual environment, since their
requirements conflict with mtgen's; without it they are skipped:

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
from common import ROOT, JsonOption, machine, quick_option, report

HERE = "mtgen", "DALI's webdataset reader", "webdataset + Pillow", "limit: the DALI graph on bytes in memory"
"""Loaders that run in this environment."""
PEERS = "mosaicml-streaming + Pillow", "litdata + Pillow", "limit: libjpeg-turbo decoding alone"
"""Loaders that need the peers' environment."""
WORKLOADS: dict[str, tuple[str, list[str]]] = {
    "coco128, random crop + flip, to 256, mask": ("coco128", ["--size", "256", "--crop", "0.3", "--flip", "--masks"]),
    "coco128, center crop, to 256, mask": ("coco128", ["--size", "256", "--masks"]),
    "cifar10, to 32": ("cifar10", ["--size", "32", "--batch", "128"]),
    "digits, to 32": ("digits", ["--size", "32", "--batch", "128", "--components", "class"]),
    "digits with sound, to 32": ("digits", ["--size", "32", "--batch", "128", "--components", "class,sound"]),
}
"""Workload -> folder of the data set, and options of `loaders_compared.py`."""


def measure(name: str, python: str, data: Path, work: Path, options: list[str], seconds: float) -> dict[str, float]:
    """Run one loader; returns what it printed.

    Raises:
        typer.BadParameter: it failed; has the last line of its output.
    """
    command = [python, str(ROOT / "benchmarks/loaders_compared.py"), name, "--data", str(data), "--work", str(work)]
    command += ["--seconds", str(seconds), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    if ended.returncode:
        reason = ended.stderr.strip().splitlines()[-1] if ended.stderr.strip() else "no output"
        raise typer.BadParameter(f"{name} on {data.name}: {reason}")
    found: dict[str, float] = json.loads(ended.stdout.strip().splitlines()[-1])
    return found


def main(
    data: Annotated[Path, typer.Option(help="folder with the data sets coco128, cifar10 and digits")] = ROOT.parent
    / "shared/data",
    peers: Annotated[Path | None, typer.Option(help="virtual environment with benchmarks/loaders_compared.txt")] = None,
    quick: Annotated[bool, quick_option("one short round")] = False,
    json_file: JsonOption = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="number of rounds; default: 3, quick: 1")] = None,
    seconds: Annotated[float | None, typer.Option(help="seconds per measurement; default: 6, quick: 3")] = None,
) -> None:
    """Compare loaders on this machine."""
    here, rows = machine(), []
    rounds, seconds = rounds or (1 if quick else 3), seconds or (3 if quick else 6)
    python = {name: sys.executable for name in HERE}
    if peers:
        python |= {name: str(peers / "bin/python") for name in PEERS}
    with tempfile.TemporaryDirectory(prefix="mtgen-data-speed-") as temporary:
        for workload, (folder, options) in WORKLOADS.items():
            if not (data / folder).is_dir():
                print(f"skipped: {workload}: {data / folder} does not exist")
                continue
            work = Path(temporary) / folder
            work.mkdir(exist_ok=True)
            # the peers are set up for images and masks only
            measured = {"mtgen": python["mtgen"]} if "--components" in options else python
            found: dict[str, list[dict[str, float]]] = {name: [] for name in measured}
            for _ in range(rounds):
                for name, interpreter in measured.items():
                    found[name].append(measure(name, interpreter, data / folder, work, options, seconds))
            speed, cpu = (
                {name: statistics.median(f[number] for f in results) for name, results in found.items()}
                for number in ("images_per_second", "cpu_us_per_image")
            )
            for name, results in sorted(found.items(), key=lambda item: cpu[item[0]]):
                row: dict[str, Any] = {"workload": workload, "name": name, "images_per_second": speed[name]}
                row["mtgen_is"] = f"{speed['mtgen'] / speed[name]:.2f} x"
                row |= {"cpu_us_per_image": cpu[name], "mtgen_by_cpu": f"{cpu[name] / cpu['mtgen']:.2f} x"}
                rows.append(row | {"rounds": results})
    if not peers:
        print(f"skipped without --peers: {', '.join(PEERS)}")
    report(f"Loading images on one CPU, medians of {rounds} rounds of {seconds:g} s", here, rows, json_file)


if __name__ == "__main__":
    typer.run(main)
