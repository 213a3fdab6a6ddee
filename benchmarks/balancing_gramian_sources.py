"""How near what the gate sees comes to the truth: cosines between the tasks' gradients of all shared parameters, while a run learns.

The truth costs a backward a task: the gate lets through one task at a time, and what then arrives at the trunk's parameters is that task's
gradient. What `features`, `pooled` and `layer` see of the same step is put beside it, on batches that come again at every probe.
"""

import statistics
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from common import ROOT, digits, machine, report
from plain_loop import PlainLoop, batches_of
from torch import Tensor

from mtgen.balancing.gramian import GRAMIAN_SOURCES
from mtgen.balancing.weighting import Weighting
from mtgen.config import load
from mtgen.training.steps import frozen


class Only(Weighting):
    """Lets one task through."""

    def __init__(self, task: int) -> None:
        super().__init__()
        self.task = task

    def __call__(self, gramian: Tensor) -> Tensor:
        return (self.rows(gramian) == self.task).to(gramian)


def cosines(products: Tensor) -> Tensor:
    """`[K,K]` Gramian -> cosines of all pairs, as a vector; a task without a gradient gives NaN."""
    norms = products.diagonal().sqrt()
    below = torch.tril_indices(len(products), len(products), -1)
    return (products / (norms[:, None] * norms))[below[0], below[1]]


def probe(training: PlainLoop, number: int) -> dict[str, Tensor]:
    """Cosines of all pairs of tasks in the discriminator's step over batch `number`: "truth", and what each sight sees."""
    step, other, _ = training.sides[0]
    gate, batch = training.gates["discriminator"], training.batches[number]
    discriminator = training.networks.side.discriminator
    shared = [p for name, p in discriminator.named_parameters() if name.startswith(("see_", "descent."))]
    kept, found, rows = (gate.weighting, gate.sight), {}, []

    def backward(rule: Weighting, sight: str) -> None:
        gate.weighting, gate.plain, gate.sight = rule, False, GRAMIAN_SOURCES[sight]
        step.zero_grad()
        with frozen(other):
            step(batch, (other,))[0].backward()

    for task in range(len(gate.tasks)):
        backward(Only(task), "features")
        rows.append(
            torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in shared]).double()
        )
    found["truth"] = cosines(torch.stack(rows) @ torch.stack(rows).T)
    for sight in GRAMIAN_SOURCES:
        backward(Only(0), sight)
        assert gate.last is not None
        found[sight] = cosines(gate.last[0].double())
    step.zero_grad()
    (gate.weighting, gate.sight), gate.plain = kept, True
    return found


def compared(images: int, probes: list[dict[str, Tensor]]) -> list[dict[str, Any]]:
    """A row for each sight: mean distance of its cosines from the truth, share of signs that agree, correlation over pairs and batches."""
    truth, rows = torch.cat([one["truth"] for one in probes]), []
    for sight in GRAMIAN_SOURCES:
        seen = torch.cat([one[sight] for one in probes])
        fine = torch.isfinite(truth) & torch.isfinite(seen)
        a, b = truth[fine], seen[fine]
        rows.append(
            {
                "name": sight,
                "images": images,
                "mean_distance": float((a - b).abs().mean()),
                "same_sign": float(((a > 0) == (b > 0)).double().mean()),
                "correlation": float(torch.corrcoef(torch.stack([a, b]))[0, 1]),
                "true_conflicts": float((a < 0).double().mean()),
                "mean_size_of_true_cosine": float(a.abs().mean()),
            }
        )
    return rows


def main(
    quick: Annotated[bool, typer.Option("--quick", help="two probes of a short training")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the numbers to this file")] = None,
    data: Annotated[
        Path | None, typer.Option(help="data set; default: ../shared/data/digits, else drawn digits")
    ] = None,
    config: Annotated[Path, typer.Option(help="what is trained")] = ROOT / "configs/digits-all-32.yaml",
    batches: Annotated[int, typer.Option(min=1, help="batches that are looked at in a probe")] = 8,
    steps: Annotated[
        int | None, typer.Option(min=20, help="of the training, to the last probe; default: 1,000, quick 20")
    ] = None,
) -> None:
    """Train, and compare at the beginning, soon after it, and later."""
    here, rows = machine(), []
    with TemporaryDirectory(prefix="mtgen-balancing-") as temporary:
        words = [
            f"data.path={digits(data, Path(temporary))}",
            "workers=0",
            "device=cpu",
            "balancing.weighting=equal",
            "balancing.gramian_source=layer",
        ]
        settings = load(config, words)
        training = PlainLoop(settings, batches_of(settings, "cpu", 8 if quick else 64), "cpu")
        steps = steps or (20 if quick else 1000)
        moments = [0, 0, steps] if quick else [0, 0, steps // 20, steps // 4, steps]
        for before, now in pairwise(moments):
            for _ in range(now - before):
                training.step()
            rows += compared(training.images, [probe(training, number) for number in range(batches)])
    for sight in GRAMIAN_SOURCES:
        own = [row for row in rows if row["name"] == sight]
        rows.append(
            {
                "name": f"{sight}, mean",
                **{key: statistics.mean(row[key] for row in own) for key in own[0] if key != "name"},
            }
        )
    report(f"What the gate sees, {settings.name}, {batches} batches a probe", here, rows, json_file)


if __name__ == "__main__":
    typer.run(main)
