"""What arbitrating between tasks costs a step: no gate, the gate with each weighting, TorchJD's full Jacobian, K separate backwards.

K tasks read a 32x32 trunk of the default widths, each with a head of its own on every level; a step is forward and backward.
The ways take turns, a round of each, so that a machine that others use too slows all alike; a ratio is the median over rounds.
With --agreement, how near what the Gramian sees comes to the gradients of all shared parameters.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import machine, report
from torch import Tensor, nn
from torchjd.aggregation import UPGrad
from torchjd.autojac import jac

from mtgen.balancing.gate import Gate
from mtgen.balancing.sight import Taps
from mtgen.config import WEIGHTINGS
from mtgen.networks.blocks import Conv2d
from mtgen.networks.pyramid import Descent

WIDTHS = [128, 96, 64, 32]


class Network(nn.Module):
    """A trunk, and K heads that each read all its levels."""

    def __init__(self, tasks: int, widths: list[int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.see, self.trunk = Conv2d(3, widths[-1], 3, padding=1), Descent(widths, 1)
        self.heads = nn.ModuleList(nn.ModuleList(nn.Conv2d(width, 1, 1) for width in widths) for _ in range(tasks))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.05)

    @property
    def shared(self) -> list[nn.Parameter]:
        return [*self.see.parameters(), *self.trunk.parameters()]

    def features(self, image: Tensor) -> list[Tensor]:
        return self.trunk(self.see(image.contiguous(memory_format=torch.channels_last)))

    def loss(self, task: int, features: list[Tensor]) -> Tensor:
        """A loss of its own for every task: another target."""
        read = [head(level).square().mean() if task % 2 else head(level).sin().mean() for head, level in zip(self.heads[task], features)]  # type: ignore[call-overload] # noqa: B905
        return torch.stack(read).sum()


def ways(network: Network, tasks: int, image: Tensor) -> dict[str, Callable[[], None]]:
    """Every way of one forward and backward, by its name."""
    names = [f"t{k}" for k in range(tasks)]
    taps = Taps([level[-1].second for level in network.trunk.levels])  # type: ignore[index]

    def gated(gate: Gate) -> Callable[[], None]:
        def step() -> None:
            views = gate(network.features(image))
            losses = [network.loss(k, views[name]) for k, name in enumerate(names)]
            gate.hear({name: loss + 1 for name, loss in zip(names, losses, strict=True)})
            torch.stack(losses).sum().backward()

        return step

    def separate() -> None:
        features = network.features(image)
        for task in range(tasks):
            network.loss(task, features).backward(retain_graph=task + 1 < tasks)

    def full_jacobian() -> None:
        """As `mtl_backward` does, which itself cannot be used here: its features may not depend on each other, and levels do."""
        features = network.features(image)
        losses = [network.loss(task, features) for task in range(tasks)]
        rows = torch.cat([part.flatten(1) for part in jac(losses, network.shared, parallel_chunk_size=1)], dim=1)
        UPGrad()(rows)

    made = {"no gate": gated(Gate(names, None))}
    made |= {f"gate, {name}": gated(Gate(names, WEIGHTINGS[name]())) for name in WEIGHTINGS}
    made |= {f"gate, upgrad, {sight}": gated(Gate(names, WEIGHTINGS["upgrad"](), sight=sight, taps=taps)) for sight in ("pooled", "layer")}
    return made | {"TorchJD full Jacobian, upgrad": full_jacobian, f"{tasks} separate backwards": separate}


def measure(tasks: int, rounds: int, batch: int) -> list[dict[str, Any]]:
    network = Network(tasks, WIDTHS)
    chosen = ways(network, tasks, torch.randn(batch, 3, 32, 32))
    times: dict[str, list[float]] = {name: [] for name in chosen}
    for number in range(rounds + 1):
        for name, step in chosen.items():
            network.zero_grad()
            begin = time.process_time()  # others on the machine do not count
            step()
            if number:
                times[name].append(1000 * (time.process_time() - begin))
    plain = times["no gate"]
    return [
        {
            "name": name,
            "tasks": tasks,
            "ms_a_step": statistics.median(own),
            "times_no_gate": statistics.median(a / b for a, b in zip(own, plain, strict=True)),
            "rounds": own,
        }
        for name, own in times.items()
    ]


def agreement(tasks: int, batch: int, probes: int) -> list[dict[str, Any]]:
    """Mean distance of each sight's cosines from those of the gradients of all shared parameters."""
    network = Network(tasks, WIDTHS)
    taps, names = Taps([level[-1].second for level in network.trunk.levels]), [f"t{k}" for k in range(tasks)]  # type: ignore[index]
    below, apart = torch.tril_indices(tasks, tasks, -1), {sight: [] for sight in ("features", "pooled", "layer")}
    for probe in range(probes):
        torch.manual_seed(probe)
        image = torch.randn(batch, 3, 32, 32)
        features, rows = network.features(image), []
        for task in range(tasks):
            found = torch.autograd.grad(network.loss(task, features), network.shared, retain_graph=True, allow_unused=True)
            rows.append(torch.cat([g.flatten() for g in found if g is not None]))
        truth = cosines(torch.stack(rows) @ torch.stack(rows).T)[below[0], below[1]]
        for sight, distances in apart.items():
            gate = Gate(names, WEIGHTINGS["equal"](), sight=sight, taps=taps)
            views = gate(network.features(image))
            torch.stack([network.loss(k, views[name]) for k, name in enumerate(names)]).sum().backward()
            assert gate.last is not None
            distances.append(float((cosines(gate.last[0])[below[0], below[1]] - truth).abs().mean()))
    return [{"name": sight, "tasks": tasks, "mean_distance_of_cosines": statistics.mean(found)} for sight, found in apart.items()]


def cosines(products: Tensor) -> Tensor:
    norms = products.diagonal().sqrt()
    return products / (norms[:, None] * norms)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="fewer rounds of a smaller batch")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the numbers to this file")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="rounds; default: 15, quick 3")] = None,
    batch: Annotated[int | None, typer.Option(min=2, help="samples; default: 64, quick 16")] = None,
    probes: Annotated[int, typer.Option("--agreement", min=0, help="probes of how the Gramians agree; 0: none")] = 0,
) -> None:
    """Time a step at 2, 4 and 8 tasks."""
    here = machine()
    rounds, batch = rounds or (3 if quick else 15), batch or (16 if quick else 64)
    rows = [row for tasks in (2, 4, 8) for row in measure(tasks, rounds, batch)]
    if probes:
        rows += agreement(4, batch, probes)
    report(f"A step's forward and backward, batch {batch}, medians of {rounds} rounds, CPU time", here, rows, json_file)


if __name__ == "__main__":
    typer.run(main)
