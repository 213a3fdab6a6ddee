"""Cost of mtgen's distribution metrics, compared with torch-fidelity and torchmetrics: same images, same Inception.

Every measurement runs in its own process on one thread. The Inception weights are random, since the cost does not
depend on them; the FID of all must agree. The peers need a separate virtual environment, since their requirements
conflict with mtgen's; without it they are skipped:

    python -m venv peers && peers/bin/pip install -r benchmarks/evaluate_peers.txt
    python benchmarks/evaluate_speed.py --peers peers
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import ROOT, JsonOption, machine, quick_option, report
from safetensors.torch import save_file

from mtgen.evaluation.extractors.inception import InceptionV3

PEERS = "torch-fidelity", "torchmetrics", "torchmetrics, features shared"
METRICS = {1: "FID", 4: "four metrics"}
"""Number of metrics -> name in the table."""


def prepare(folder: Path, count: int) -> None:
    """Write two sets of smooth random RGB images of 32x32, and an Inception with random weights in two formats."""
    random = torch.Generator().manual_seed(0)
    small = torch.rand(2, count, 3, 8, 8, generator=random)
    small[1] = small[1] * 0.8 + 0.1
    large = torch.nn.functional.interpolate(small.flatten(0, 1), scale_factor=4, mode="bilinear")
    real, generated = (large * 255).round().to(torch.uint8).unflatten(0, (2, count)).contiguous()
    save_file({"real": real.clone(), "generated": generated.clone()}, folder / "images.safetensors")
    torch.manual_seed(0)
    network = InceptionV3()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)  # else the signal vanishes over so many layers
    tensors = network.state_dict()
    save_file(tensors, folder / "inception.safetensors")
    classifier = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save({**tensors, **classifier}, folder / "inception.pth")


def measure(name: str, python: str, folder: Path, metrics: int) -> dict[str, Any]:
    """Run one evaluation; returns what it printed.

    Raises:
        typer.BadParameter: it failed; has the last line of its output.
    """
    command = [python, str(ROOT / "benchmarks/evaluate_peers.py"), name, "--metrics", str(metrics)]
    command += ["--images", str(folder / "images.safetensors"), "--weights", str(folder / "inception.safetensors")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=3600, check=False)
    if ended.returncode:
        reason = ended.stderr.strip().splitlines()[-1] if ended.stderr.strip() else "no output"
        raise typer.BadParameter(f"{name}: {reason}")
    found: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    return found


def main(
    peers: Annotated[Path | None, typer.Option(help="virtual environment with benchmarks/evaluate_peers.txt")] = None,
    quick: Annotated[bool, quick_option("fewer images, one round")] = False,
    json_file: JsonOption = None,
    images: Annotated[
        int | None, typer.Option(min=10, help="images in each of the two sets; default: 512, quick: 64")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="number of rounds, alternating in order; default: 3, quick: 1")
    ] = None,
) -> None:
    """Compare evaluations on this machine."""
    here, count, rounds = machine(), images or (64 if quick else 512), rounds or (1 if quick else 3)
    pythons = {"mtgen": sys.executable} | ({name: str(peers / "bin/python") for name in PEERS} if peers else {})
    rows = []
    with tempfile.TemporaryDirectory(prefix="mtgen-evaluate-speed-") as temporary:
        prepare(Path(temporary), count)
        for metrics, what in METRICS.items():
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in pythons}
            for number in range(rounds):
                for name, python in list(pythons.items())[:: 1 if number % 2 == 0 else -1]:
                    found[name].append(measure(name, python, Path(temporary), metrics))
            cost = {name: statistics.median(one["cpu_seconds"] for one in results) for name, results in found.items()}
            for name, results in found.items():
                row: dict[str, Any] = {"name": name, "what": what, "cpu_seconds": cost[name]}
                row["seconds"] = statistics.median(one["seconds"] for one in results)
                row["mtgen_is_faster"] = f"{cost[name] / cost['mtgen']:.2f} x"
                rows.append(
                    {**row, "fid": results[0]["numbers"].get("fid"), "rounds": [one["cpu_seconds"] for one in results]}
                )
    if not peers:
        print(f"skipped without --peers: {', '.join(PEERS)}")
    report(f"Comparing {count} images with {count}, one thread, medians of {rounds} rounds", here, rows, json_file)


if __name__ == "__main__":
    typer.run(main)
