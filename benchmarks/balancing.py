"""What arbitrating between tasks costs a step: no gate, the gate with each weighting, TorchJD's full Jacobian, K separate backwards.

Two steps are measured. "whole": a step of `configs/digits-all-32.yaml` with K of its tasks (and tagging), both networks, all losses,
penalties and Adam: what a user pays. "trunk": forward and backward of a 32x32 trunk of the default widths that K tasks read on every level,
each with a small head: nothing else stands beside the gate there, and TorchJD and K backwards can be put beside it.
The ways take turns, a round of each in an order that is drawn anew, so that a machine that others use too slows all alike; a ratio is the
median over rounds, and lies between `at_least` and `at_most` with 95 % confidence (Hettmansperger and Sheather 1986: from the ordered
rounds alone). `in_gate` is the share of a step's time that is spent in the gates, forward and backward, by the clock around them; what
autograd would add up without them is not taken off, so it is an upper bound, and a far sharper one than the difference of two steps.
Memory is the most that tensors hold above what is held before the step, by torch's own record of allocations.
"""

import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import ROOT, digits, machine, report
from plain_loop import PlainLoop, batches_of
from torch import Tensor, nn
from torchjd.aggregation import UPGrad
from torchjd.autojac import jac

from mtgen.balancing.gate import Gate, GradientGate
from mtgen.balancing.gramian import InputHooks
from mtgen.config import WEIGHTINGS, load
from mtgen.networks.blocks import Conv2d
from mtgen.networks.pyramid import DownsamplePyramid

WIDTHS = [128, 96, 64, 32]
TASKS = [
    "generation",
    "segmentation",
    "classification",
    "reconstruction",
    "detection",
    "alignment",
    "translation",
    "tagging",
]


class Network(nn.Module):
    """A trunk, and K heads that each read all its levels."""

    def __init__(self, tasks: int, widths: list[int], blocks: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.see = Conv2d(3, widths[-1], 3, padding=1)
        self.trunk = DownsamplePyramid(widths, blocks)
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
        read = [
            head(level).square().mean() if task % 2 else head(level).sin().mean()
            for head, level in zip(self.heads[task], features, strict=False)
        ]
        return torch.stack(read).sum()


def ways(tasks: int, image: Tensor, blocks: int = 1) -> dict[str, Callable[[], None]]:
    """Every way of one forward and backward of the trunk, by its name."""
    network = Network(tasks, WIDTHS, blocks)
    names = [f"t{k}" for k in range(tasks)]
    taps = InputHooks([level[-1].second for level in network.trunk.levels])  # type: ignore[index]

    def gated(gate: Gate) -> Callable[[], None]:
        def step() -> None:
            network.zero_grad()
            views = gate(network.features(image))
            losses = [network.loss(k, views[name]) for k, name in enumerate(names)]
            gate.set_losses({name: loss + 1 for name, loss in zip(names, losses, strict=True)})
            torch.stack(losses).sum().backward()

        return step

    def separate() -> None:
        network.zero_grad()
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
    made |= {
        f"gate, upgrad, {sight}": gated(Gate(names, WEIGHTINGS["upgrad"](), sight=sight, taps=taps))
        for sight in ("pooled", "layer")
    }
    return made | {"TorchJD full Jacobian, upgrad": full_jacobian, f"{tasks} separate backwards": separate}


def whole(data: Path, tasks: int, batch: int) -> dict[str, Callable[[], None]]:
    """A whole step of the configuration's first tasks under every policy, by its name."""
    batches, found = [], {}
    for name in ["none", *WEIGHTINGS]:
        off = [f"tasks.{task}.weight=0" for task in TASKS[tasks:]]
        words = [
            f"data.path={data.absolute()}",
            f"batch_size={batch}",
            "workers=0",
            "device=cpu",
            f"balancing.weighting={name}",
            "conditions.image.probability=0",
            *off,
        ]
        canvas = "balancing.canvas=none" if name == "none" else "balancing.canvas=equal"
        config = load(
            ROOT / "configs/digits-all-32.yaml",
            [*words, canvas, *(["tasks.tagging.weight=0.3"] if tasks == len(TASKS) else [])],
        )
        batches = batches or batches_of(config, "cpu")
        found["no gate" if name == "none" else f"gate, {name}"] = PlainLoop(config, batches, "cpu").step
    return found


@contextmanager
def clock_of_gates() -> Iterator[list[float]]:
    """CPU time that is spent in gates while it is open, ms: the list's only number."""
    spent, whole = [0.0], (Gate.__call__, GradientGate.backward)

    def timed(part: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            begin = time.process_time()
            found = part(*given)
            spent[0] += 1000 * (time.process_time() - begin)
            return found

        return run

    Gate.__call__, GradientGate.backward = timed(whole[0]), staticmethod(timed(whole[1]))  # type: ignore[method-assign, assignment]
    try:
        yield spent
    finally:
        Gate.__call__, GradientGate.backward = whole[0], staticmethod(whole[1])  # type: ignore[method-assign, assignment]


def interval(values: list[float]) -> tuple[float, float]:
    """Where the median lies with 95 % confidence."""
    ordered = sorted(values)
    outside = max(math.floor((len(values) - 1.96 * math.sqrt(len(values))) / 2), 0)
    return ordered[outside], ordered[-1 - outside]


def measure(step: str, chosen: dict[str, Callable[[], None]], rounds: int, **about: int) -> list[dict[str, Any]]:
    """A row for each way: CPU time of a step, the gates' part of it, and the most memory that it holds."""
    times: dict[str, list[float]] = {name: [] for name in chosen}
    inside: dict[str, list[float]] = {name: [] for name in chosen}
    drawn = random.Random(0)
    with clock_of_gates() as spent:
        for number in range(rounds + 1):
            for name in drawn.sample(list(chosen), len(chosen)):
                spent[0], begin = 0.0, time.process_time()  # others on the machine do not count
                chosen[name]()
                if number:
                    times[name].append(1000 * (time.process_time() - begin))
                    inside[name].append(spent[0] / times[name][-1])
    plain, held = times["no gate"], {name: most_held(way) for name, way in chosen.items()}
    rows = []
    for name, own in times.items():
        ratios = [a / b for a, b in zip(own, plain, strict=True)]
        low, high = interval(ratios)
        rows.append(
            {
                "name": name,
                "step": step,
                **about,
                "ms_a_step": statistics.median(own),
                "times_no_gate": statistics.median(ratios),
                "at_least": low,
                "at_most": high,
                "in_gate": statistics.median(inside[name]),
                "mb_held": held[name],
                "memory_times_no_gate": held[name] / held["no gate"],
                "rounds": own,
            }
        )
    return rows


def most_held(step: Callable[[], None]) -> float:
    """The most that tensors hold within a step above what they held before it, MB."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    kineto = profile.profiler.kineto_results  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in kineto.events() if event.name() == "[memory]")
    return max(accumulate((nbytes for _, nbytes in changes), initial=0)) / 1e6


def main(
    quick: Annotated[bool, typer.Option("--quick", help="fewer rounds of a smaller batch")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the numbers to this file")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="rounds; default: 15, quick 3")] = None,
    batch: Annotated[int | None, typer.Option(min=8, help="samples; default: 32, quick 16")] = None,
    data: Annotated[
        Path | None, typer.Option(help="data set; default: ../shared/data/digits, else drawn digits")
    ] = None,
) -> None:
    """Time a step at 2, 4 and 8 tasks."""
    here = machine()
    rounds, batch = rounds or (3 if quick else 15), batch or (16 if quick else 32)
    rows = []
    with tempfile.TemporaryDirectory(prefix="mtgen-balancing-") as temporary:
        folder = digits(data, Path(temporary))
        for tasks in (2, 4, len(TASKS)):
            rows += measure("whole", whole(folder, tasks, batch), rounds, tasks=tasks)
    image = torch.randn(batch, 3, 32, 32)
    for tasks in (2, 4, 8):
        rows += measure("trunk", ways(tasks, image), rounds, tasks=tasks, blocks=1)
    deep = ways(4, image, blocks=4)
    rows += measure(
        "trunk", {name: deep[name] for name in ("no gate", "gate, equal", "gate, upgrad")}, rounds, tasks=4, blocks=4
    )
    report(f"A step, batch {batch}, medians of {rounds} rounds, CPU time", here, rows, json_file)


if __name__ == "__main__":
    typer.run(main)
