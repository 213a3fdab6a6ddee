"""The smoke test's checks of speed: host syncs, images per second beside the plan's prediction, launches, memory."""

from collections.abc import Callable, Iterator
from functools import partial

from mtgen.config import Config, load
from mtgen.schema import DatasetCard
from mtgen.version import PACKAGE

TIMED = {"digits-32": (10, 64), "scenes-64": (10, 32), "coco-256": (80, 16)}
"""Configurations that are timed on a GPU -> classes, and images per step."""
KINDS = {
    "bf16": ["precision=bf16"],
    "fp16": ["precision=fp16"],
    "bf16, compiled": ["precision=bf16", "train.compile=on", "train.static_shapes=true"],
    "bf16, graphs": ["precision=bf16", "train.compile=graphs", "train.static_shapes=true"],
}
"""How each is timed -> settings."""
STEPS_ON_GPU, STEPS_ON_CPU = 20, 3
"""Steps that are timed."""


class Unavailable(Exception):
    """A check cannot run on this system; the message says why, and what would change that."""


def speed_checks(small: Config, device: str) -> Iterator[tuple[str, Callable[[], str]]]:
    """Names and functions of the checks; a CPU times `small` alone."""
    yield "no host sync in a step", partial(_no_sync, small, device)
    if device == "cpu":
        yield f"speed at {small.resolution} pixels, {small.precision}", partial(_timed, small, 2, device, STEPS_ON_CPU)
        return
    for kind, words in KINDS.items():  # the ones that compile, for minutes, come last
        for name, (classes, batch_size) in TIMED.items():
            settings = ["data.path=nowhere", "workers=1", f"batch_size={batch_size}", *words]
            config = load(PACKAGE / "configs" / f"{name}.yaml", settings)
            yield f"speed of {name}, {kind}", partial(_timed, config, classes, device, STEPS_ON_GPU)


def _card(classes: int) -> DatasetCard:
    names = [f"class {number}" for number in range(classes)]
    return DatasetCard(name="smoke", classes=names, mask_classes=["background", *names], splits={})


def _no_sync(config: Config, device: str) -> str:
    """Fail where a step of the small configuration lets the host wait for the GPU."""
    import torch

    from mtgen.preflight.step_speed import StepLoop

    if device == "cpu":
        raise Unavailable("needs a GPU; on a CPU, tests/training/test_host_syncs.py counts syncs on a pretended one")
    return StepLoop(config, _card(2), torch.device(device)).check_syncs()


def _timed(config: Config, classes: int, device: str, steps: int) -> str:
    """Time both steps on random data, and predict the same from the GPU's data sheet."""
    import torch

    from mtgen.preflight.cost import cost
    from mtgen.preflight.roofline import assumptions, forecast
    from mtgen.preflight.step_speed import StepLoop, this_gpu

    card = _card(classes)
    found = str(StepLoop(config, card, torch.device(device)).measure(steps))
    gpu = this_gpu() if device == "cuda" else None
    if gpu is None:
        return found
    predicted = forecast(config, cost(config, card), gpu, 1, assumptions().expected)
    return (
        f"{found}; `mtgen plan` predicts {predicted.images_per_second:,.0f} images/s, bound by {predicted.times.bound}"
    )
