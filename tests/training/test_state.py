"""A checkpoint of any ZeRO stage, precision and number of workers can be resumed in any other."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import toy
from helpers.devices import on_gpu
from torch import Tensor

from mtgen.errors import CheckpointError

BEFORE, AFTER = 3, 3  # steps before and after the checkpoint
FORMS = list(product((0, 1, 2), ("fp32", "bf16")))  # ZeRO stage, precision


def settings(form: tuple[int, str], device: str) -> dict[str, Any]:
    changes = {"zero_stage": form[0], "precision": form[1], "workers": dist.get_world_size(), "device": device}
    if device == "cuda":  # only what can be summed in a fixed order: no warps, and no losses of pixels
        torch.use_deterministic_algorithms(True)
        changes |= {"augment__probability": 0.0, "tasks": {"generation": {}, "classification": {}}}
    return changes


def saved(forms: list[tuple[int, str]], root: str, device: str) -> list[dict[str, Tensor]]:
    """In each form: some steps, a checkpoint in `root/FORM`, more steps; returns the parameters at the end."""
    ends = []
    for number, form in enumerate(forms):
        deep = toy.Deep(toy.config(**settings(form, device)))
        for k in range(BEFORE):
            deep.step(k)
        deep.save(Path(root) / str(number), BEFORE)
        for k in range(BEFORE, BEFORE + AFTER):
            deep.step(k)
        ends.append(toy.parameters(deep.networks))
    return ends


def resumed(pairs: list[tuple[int, tuple[int, str]]], root: str, device: str) -> list[tuple[float, dict[str, Tensor]]]:
    """For each (number of a checkpoint, form): how far the loaded state is off, and the parameters at the end."""
    ends = []
    for number, form in pairs:
        deep = toy.Deep(toy.config(**settings(form, device)))
        deep.step(99)  # so that parameters and moments differ until they are loaded
        found = deep.load(Path(root) / str(number))
        loaded = max(difference(tensors, found.tensors(side)) for side, tensors in deep.state().items())
        for k in range(BEFORE, BEFORE + AFTER):
            deep.step(k)
        ends.append((loaded, toy.parameters(deep.networks)))
    return ends


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.fixture(scope="module", params=[1, 2], ids=["from 1 worker", "from 2 workers"])
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, str, list[dict[str, Tensor]]]:
    """Number of workers, folder of the checkpoints (one per form), and parameters of the uninterrupted runs."""
    folder = tmp_path_factory.mktemp(f"source{request.param}")
    ends = toy.spawn(request.param, saved, folder, FORMS, str(folder), "cpu")
    return request.param, str(folder), ends[0]


@pytest.mark.parametrize("workers", [pytest.param(count, marks=on_gpu(count)) for count in (1, 2)])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit_on_gpus(workers: int, tmp_path: Path) -> None:
    """As the next test on the CPU, in each form for itself."""
    forms = [*FORMS, (0, "fp16"), (1, "fp16")]
    (tmp_path / "resumed").mkdir()
    ends = toy.spawn(workers, saved, tmp_path, forms, str(tmp_path), "cuda", device="cuda")[0]
    pairs = list(enumerate(forms))
    results = toy.spawn(workers, resumed, tmp_path / "resumed", pairs, str(tmp_path), "cuda", device="cuda")[0]
    for form, (loaded, end), uninterrupted in zip(forms, results, ends, strict=True):
        assert (loaded, difference(end, uninterrupted)) == (0.0, 0.0), form


@pytest.mark.parametrize("workers", [1, 2], ids=["to 1 worker", "to 2 workers"])
def test_any_form_resumes_in_any_other(
    source: tuple[int, str, list[dict[str, Tensor]]], workers: int, tmp_path: Path
) -> None:
    world, root, uninterrupted = source
    pairs = [(number, form) for number, form in product(range(len(FORMS)), FORMS) if form[1] == FORMS[number][1]]
    for results in toy.spawn(workers, resumed, tmp_path, pairs, root, "cpu"):
        for (number, form), (loaded, end) in zip(pairs, results, strict=True):
            case = f"{FORMS[number]} on {world} workers to {form} on {workers}"
            assert loaded == 0.0, case
            if world == workers and form == FORMS[number]:
                assert difference(end, uninterrupted[number]) == 0.0, case
            elif world == workers or form[1] == "fp32":
                # Another stage has another memory layout of parameters, by which some CPUs round products of few rows.
                # Another number of workers splits the batch; in bf16 this rounds gradients, and Adam makes whole steps
                # of rounding errors.
                assert difference(end, uninterrupted[number]) <= 1e-5, case


def refused(change: dict[str, Any]) -> str:
    """The error of loading the state of one network into a changed one."""
    tensors = toy.Deep(toy.config()).engines["discriminator"].state(keep=True)
    changed = toy.Deep(toy.config(**change)).engines["discriminator"]
    before = toy.parameters(toy.steps(toy.config(**change))[0])
    with pytest.raises(CheckpointError) as caught:
        changed.load(tensors, 0, {"skipped": 0, "in_a_row": 0})
    now = {f"side.{name}": parameter for name, parameter in changed.trained.named_parameters()}
    assert all(now[name].equal(before[name]) for name in now), "a refused state has changed parameters"
    return str(caught.value)


@pytest.mark.parametrize(
    "change", [{"discriminator__widths": [8, 12]}, {"tasks": {"generation": {}}}], ids=["wider", "without heads"]
)
def test_the_state_of_another_network_is_refused_by_the_name_of_a_parameter(
    change: dict[str, Any], tmp_path: Path
) -> None:
    (message,) = toy.spawn(1, refused, tmp_path, change)
    assert len(message.splitlines()) == 1
    assert any(name.removeprefix("side.") in message for name in toy.parameters(toy.steps(toy.config())[0]))


def begun_badly(stage: int) -> float:
    """Skip the first step, load the state into another engine, make a good step with both: how far they differ."""
    first, second = (toy.Deep(toy.config(zero_stage=stage, workers=2)) for _ in range(2))
    first.step(0, spoil=True)
    for side, engine in first.engines.items():
        second.engines[side].load(engine.state(keep=True), engine.steps_taken, engine.optimizer.counters())
    for deep in (first, second):
        deep.step(1)
    return max(difference(tensors, second.state()[side]) for side, tensors in first.state().items())


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_run_whose_first_step_is_skipped_can_be_saved_and_resumed(stage: int, tmp_path: Path) -> None:
    assert toy.spawn(2, begun_badly, tmp_path, stage) == [0.0, 0.0]
