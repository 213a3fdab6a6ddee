"""What mtgen's comparison of distributions costs, beside torch-fidelity and torchmetrics: the same images, the same Inception, one thread.

Every measurement is a process of its own. Its weights are random: the cost does not depend on them, and all are shown to agree on the FID.
Peers run in a virtual environment of their own, because their requirements break ours; without one they are left out and the table says so:

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
from common import machine, report
from safetensors.torch import save_file

from mtgen.evaluation.extractors.inception import InceptionV3

ROOT = Path(__file__).resolve().parents[1]
PEERS = "torch-fidelity", "torchmetrics", "torchmetrics, features shared"
WHAT = {1: "FID", 4: "four metrics"}


def prepare(folder: Path, count: int) -> None:
    """Two sets of smooth random RGB images of 32x32, and an Inception with random weights, in the two formats."""
    random = torch.Generator().manual_seed(0)
    small = torch.rand(2, count, 3, 8, 8, generator=random)
    small[1] = small[1] * 0.8 + 0.1
    large = torch.nn.functional.interpolate(small.flatten(0, 1), scale_factor=4, mode="bilinear")
    real, drawn = (large * 255).round().to(torch.uint8).unflatten(0, (2, count)).contiguous()
    save_file({"real": real.clone(), "drawn": drawn.clone()}, folder / "images.safetensors")
    torch.manual_seed(0)
    network = InceptionV3()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(
                module.weight
            )  # else nothing would be left of the images after so many layers
    tensors = network.state_dict()
    save_file(tensors, folder / "inception.safetensors")
    torch.save(
        {**tensors, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, folder / "inception.pth"
    )


def measure(name: str, python: str, folder: Path, metrics: int) -> dict[str, Any]:
    """Run one contender; what it prints, or why it could not run."""
    command = [python, str(ROOT / "benchmarks/evaluate_peers.py"), name, "--metrics", str(metrics)]
    command += ["--images", str(folder / "images.safetensors"), "--weights", str(folder / "inception.safetensors")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=3600, check=False)
    if ended.returncode:
        raise typer.BadParameter(
            f"{name}: {ended.stderr.strip().splitlines()[-1] if ended.stderr.strip() else 'no output'}"
        )
    found: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    return found


def main(
    peers: Annotated[Path | None, typer.Option(help="virtual environment with benchmarks/evaluate_peers.txt")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="fewer images, one round")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the numbers to this file")] = None,
    images: Annotated[int | None, typer.Option(min=10, help="of each of the two sets; default: 512, quick 64")] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="default: 3, quick 1; every other one in reversed order")
    ] = None,
) -> None:
    """Compare evaluations on this machine."""
    here, count, rounds = machine(), images or (64 if quick else 512), rounds or (1 if quick else 3)
    contenders = {"mtgen": sys.executable} | ({name: str(peers / "bin/python") for name in PEERS} if peers else {})
    rows = []
    with tempfile.TemporaryDirectory(prefix="mtgen-evaluate-speed-") as temporary:
        prepare(Path(temporary), count)
        for metrics, what in WHAT.items():
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
            for number in range(rounds):
                for name, python in list(contenders.items())[:: 1 if number % 2 == 0 else -1]:
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
        print(f"left out, for want of --peers: {', '.join(PEERS)}")
    report(f"Comparing {count} images with {count}, one thread, medians of {rounds} rounds", here, rows, json_file)


if __name__ == "__main__":
    typer.run(main)
