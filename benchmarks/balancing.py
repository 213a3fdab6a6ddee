"""Cost of gradient balancing per step: no gate, the gate with each weighting, TorchJD, and K backward passes.

Two kinds of steps are measured:

- "whole": a training step of `configs/digits-all-32.yaml` with K of its tasks (and tagging): both networks, all losses,
  penalties and Adam. This is what a user pays.
- "trunk": forward and backward pass of a 32x32 trunk of the default widths with K small heads that use every level.
  Nothing else dilutes the gate's cost, and TorchJD and K backward passes can be compared.

The methods run once per round in a new random order, so that other work on the machine slows all of them alike. A ratio
is the median over rounds; its 95 % confidence interval is `at_least` to `at_most` (from order statistics,
Hettmansperger and Sheather 1986). `in_gate` is the fraction of the step's time inside the gates, forward and backward.
It includes the sum that autograd would compute anyway, so it is an upper bound, but a much tighter one than the
difference of two steps. Memory is the peak of tensors above what was allocated before the step, as recorded by torch.
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
from common import ROOT, DataOption, JsonOption, digits, machine, quick_option, report
from plain_loop import PlainLoop, load_batches
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
    """A trunk with K heads, each of which uses all levels."""

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
        """A different loss for every task."""
        parts = [
            head(level).square().mean() if task % 2 else head(level).sin().mean()
            for head, level in zip(self.heads[task], features, strict=False)
        ]
        return torch.stack(parts).sum()


def trunk_methods(tasks: int, image: Tensor, blocks: int = 1) -> dict[str, Callable[[], None]]:
    """Forward and backward pass of the trunk by every method, as functions by name."""
    network = Network(tasks, WIDTHS, blocks)
    names = [f"t{k}" for k in range(tasks)]
    hooks = InputHooks([level[-1].second for level in network.trunk.levels])  # type: ignore[index]

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
        """As `mtl_backward` does; that function needs features that do not depend on each other, which levels do."""
        features = network.features(image)
        losses = [network.loss(task, features) for task in range(tasks)]
        rows = torch.cat([part.flatten(1) for part in jac(losses, network.shared, parallel_chunk_size=1)], dim=1)
        UPGrad()(rows)

    methods = {"no gate": gated(Gate(names, None))}
    methods |= {f"gate, {name}": gated(Gate(names, WEIGHTINGS[name]())) for name in WEIGHTINGS}
    methods |= {
        f"gate, upgrad, {source}": gated(Gate(names, WEIGHTINGS["upgrad"](), gramian_source=source, input_hooks=hooks))
        for source in ("pooled", "layer")
    }
    return methods | {"TorchJD full Jacobian, upgrad": full_jacobian, f"{tasks} separate backwards": separate}


def whole_methods(data: Path, tasks: int, batch: int) -> dict[str, Callable[[], None]]:
    """A whole step with the first tasks of the configuration under every weighting, as functions by name."""
    batches, found = [], {}
    for name in ["none", *WEIGHTINGS]:
        off = [f"tasks.{task}.weight=0" for task in TASKS[tasks:]]
        overrides = [
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
            [*overrides, canvas, *(["tasks.tagging.weight=0.3"] if tasks == len(TASKS) else [])],
        )
        batches = batches or load_batches(config, "cpu")
        found["no gate" if name == "none" else f"gate, {name}"] = PlainLoop(config, batches, "cpu").step
    return found


@contextmanager
def gate_clock() -> Iterator[list[float]]:
    """Measure the CPU time in gates: the only element of the yielded list, in ms."""
    spent, forward, backward = [0.0], Gate.__call__, GradientGate.backward

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            begin = time.process_time()
            result = function(*arguments)
            spent[0] += 1000 * (time.process_time() - begin)
            return result

        return run

    Gate.__call__ = timed(forward)  # type: ignore[method-assign]
    GradientGate.backward = staticmethod(timed(backward))  # type: ignore[method-assign, assignment]
    try:
        yield spent
    finally:
        Gate.__call__ = forward  # type: ignore[method-assign]
        GradientGate.backward = staticmethod(backward)  # type: ignore[method-assign, assignment]


def interval(values: list[float]) -> tuple[float, float]:
    """95 % confidence interval of the median."""
    ordered = sorted(values)
    outside = max(math.floor((len(values) - 1.96 * math.sqrt(len(values))) / 2), 0)
    return ordered[outside], ordered[-1 - outside]


def measure(step: str, methods: dict[str, Callable[[], None]], rounds: int, **about: int) -> list[dict[str, Any]]:
    """Measure CPU time, time in gates and peak memory of each method, after one warm-up round; one row per method."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    inside: dict[str, list[float]] = {name: [] for name in methods}
    rng = random.Random(0)
    with gate_clock() as spent:
        for number in range(rounds + 1):
            for name in rng.sample(list(methods), len(methods)):
                spent[0], begin = 0.0, time.process_time()  # CPU time: other processes do not count
                methods[name]()
                if number:
                    times[name].append(1000 * (time.process_time() - begin))
                    inside[name].append(spent[0] / times[name][-1])
    plain, held = times["no gate"], {name: peak_memory(method) for name, method in methods.items()}
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


def peak_memory(step: Callable[[], None]) -> float:
    """Peak memory of tensors within a step, above what was allocated before it, MB."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    kineto = profile.profiler.kineto_results  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in kineto.events() if event.name() == "[memory]")
    return max(accumulate((nbytes for _, nbytes in changes), initial=0)) / 1e6


def main(
    quick: Annotated[bool, quick_option("fewer rounds, a smaller batch")] = False,
    json_file: JsonOption = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="number of rounds; default: 15, quick: 3")] = None,
    batch: Annotated[int | None, typer.Option(min=8, help="batch size; default: 32, quick: 16")] = None,
    data: DataOption = None,
) -> None:
    """Measure a step with 2, 4 and 8 tasks."""
    here = machine()
    rounds, batch = rounds or (3 if quick else 15), batch or (16 if quick else 32)
    rows = []
    with tempfile.TemporaryDirectory(prefix="mtgen-balancing-") as temporary:
        folder = digits(data, Path(temporary))
        for tasks in (2, 4, len(TASKS)):
            rows += measure("whole", whole_methods(folder, tasks, batch), rounds, tasks=tasks)
    image = torch.randn(batch, 3, 32, 32)
    for tasks in (2, 4, 8):
        rows += measure("trunk", trunk_methods(tasks, image), rounds, tasks=tasks, blocks=1)
    deep = trunk_methods(4, image, blocks=4)
    chosen = {name: deep[name] for name in ("no gate", "gate, equal", "gate, upgrad")}
    rows += measure("trunk", chosen, rounds, tasks=4, blocks=4)
    report(f"CPU time of a step, batch {batch}, medians of {rounds} rounds", here, rows, json_file)


if __name__ == "__main__":
    typer.run(main)
