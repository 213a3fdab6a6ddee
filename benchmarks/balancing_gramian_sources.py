"""Accuracy of the gate's Gramian sources: cosines between task gradients, compared with those of all shared parameters.

The true cosines need one backward pass per task: the gate passes one task at a time, and what then reaches the trunk's
parameters is that task's gradient. The cosines by `features`, `pooled` and `layer` in the same step are compared with
them, on the same batches at several moments of a training.
"""

import statistics
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from common import ROOT, DataOption, JsonOption, digits, machine, quick_option, report
from plain_loop import PlainLoop, load_batches
from torch import Tensor

from mtgen.balancing.gramian import GRAMIAN_SOURCES
from mtgen.balancing.weighting import GateContext, Weighting
from mtgen.config import load
from mtgen.training.step import frozen


class OneTask(Weighting):
    """Passes the gradient of one task only."""

    def __init__(self, task: int) -> None:
        super().__init__()
        self.task = task

    def __call__(self, gramian: Tensor, context: GateContext) -> Tensor:
        return (context.active == self.task).to(gramian)


def cosines(products: Tensor) -> Tensor:
    """Cosines of all pairs of tasks from a Gramian `[K,K]`, as a vector; NaN for a task without a gradient."""
    norms = products.diagonal().sqrt()
    below = torch.tril_indices(len(products), len(products), -1)
    return (products / (norms[:, None] * norms))[below[0], below[1]]


def probe(training: PlainLoop, number: int) -> dict[str, Tensor]:
    """Cosines of all pairs of tasks in the discriminator step over batch `number`: "truth", and those of each."""
    step, other, _ = training.sides[0]
    gate, batch = training.gates["discriminator"], training.batches[number]
    discriminator = training.networks.side.discriminator
    shared = [p for name, p in discriminator.named_parameters() if name.startswith(("see_", "descent."))]
    kept, found, rows = (gate.weighting, gate.gramian_source), {}, []

    def backward(weighting: Weighting, source: str) -> None:
        gate.weighting, gate.is_plain_sum, gate.gramian_source = weighting, False, GRAMIAN_SOURCES[source]
        step.zero_grad()
        with frozen(other):
            step(batch, (other,))[0].backward()

    for task in range(len(gate.tasks)):
        backward(OneTask(task), "features")
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in shared]
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]).double())
    found["truth"] = cosines(torch.stack(rows) @ torch.stack(rows).T)
    for source in GRAMIAN_SOURCES:
        backward(OneTask(0), source)
        assert gate.last is not None
        found[source] = cosines(gate.last[0].double())
    step.zero_grad()
    (gate.weighting, gate.gramian_source), gate.is_plain_sum = kept, True
    return found


def compared(images: int, probes: list[dict[str, Tensor]]) -> list[dict[str, Any]]:
    """Compare each source with the truth, over all pairs and batches; one row per source.

    A row has the mean distance of the cosines, the fraction of equal signs, and the correlation.
    """
    truth, rows = torch.cat([one["truth"] for one in probes]), []
    for source in GRAMIAN_SOURCES:
        seen = torch.cat([one[source] for one in probes])
        finite = torch.isfinite(truth) & torch.isfinite(seen)
        a, b = truth[finite], seen[finite]
        rows.append(
            {
                "name": source,
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
    quick: Annotated[bool, quick_option("two probes of a short training")] = False,
    json_file: JsonOption = None,
    data: DataOption = None,
    config: Annotated[Path, typer.Option(help="configuration")] = ROOT / "configs/digits-all-32.yaml",
    batches: Annotated[int, typer.Option(min=1, help="batches per probe")] = 8,
    steps: Annotated[
        int | None, typer.Option(min=20, help="training steps until the last probe; default: 1,000, quick: 20")
    ] = None,
) -> None:
    """Train, and compare the sources at the beginning, soon after it, and later."""
    here, rows = machine(), []
    with TemporaryDirectory(prefix="mtgen-balancing-") as temporary:
        overrides = [
            f"data.path={digits(data, Path(temporary))}",
            "workers=0",
            "device=cpu",
            "balancing.weighting=equal",
            "balancing.gramian_source=layer",
        ]
        settings = load(config, overrides)
        training = PlainLoop(settings, load_batches(settings, "cpu", 8 if quick else 64), "cpu")
        steps = steps or (20 if quick else 1000)
        moments = [0, 0, steps] if quick else [0, 0, steps // 20, steps // 4, steps]
        for before, now in pairwise(moments):
            for _ in range(now - before):
                training.step()
            rows += compared(training.images, [probe(training, number) for number in range(batches)])
    for source in GRAMIAN_SOURCES:
        own = [row for row in rows if row["name"] == source]
        means = {key: statistics.mean(row[key] for row in own) for key in own[0] if key != "name"}
        rows.append({"name": f"{source}, mean", **means})
    report(f"Gramian sources, {settings.name}, {batches} batches per probe", here, rows, json_file)


if __name__ == "__main__":
    typer.run(main)
