"""All tasks and all conditions in one step: whom they train, what a missing label does, and that they do not disturb each other."""

import copy
from itertools import combinations
from typing import Any

import pytest
import torch
from helpers import toy
from helpers.scenes import unlabeled
from torch import Tensor, nn

from mtgen.config import Config
from mtgen.models.model import Model, Networks, build
from mtgen.schema import Batch, Prompt
from mtgen.training.steps import build_steps, frozen

SIDES = ["discriminator", "generator"]
NEEDS = {"classification": "class", "segmentation": "mask", "detection": "boxes", "tagging": "boxes"}
MEANT = {"class": "class", "labels": "boxes", "caption": "caption", "sound": "sound"}


def stepped(config: Config, side: str, batch: Batch) -> tuple[Networks, dict[str, Tensor]]:
    """One step's backward with all layers at work: the networks with their gradients, and what it logged."""
    networks = build(config, toy.CARD)
    d_step, g_step, _ = build_steps(config, networks)
    for parameter in [*networks.generator.parameters(), *networks.side.parameters()]:
        parameter.data.add_(
            0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
        )
    trained, other = (d_step, networks.generator) if side == "discriminator" else (g_step, networks.side)
    with frozen(other):
        loss, log = trained(batch, (other,))
        loss.backward()
    return networks, log


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def modules(networks: Networks) -> dict[str, nn.Module]:
    return {"discriminator": networks.side, "generator": networks.generator}


@pytest.mark.parametrize("side", SIDES)
def test_one_step_of_all_trains_all_of_its_own_side_and_nothing_of_the_other(side: str) -> None:
    networks, log = stepped(toy.everything(batch_size=48), side, toy.batch(0, 48))
    assert {name.split("_")[0] for name in log} == set(toy.TASKS)
    assert all(bool(torch.isfinite(value)) for value in log.values())
    both = modules(networks)
    still = [name for name, gradient in gradients(both.pop(side)).items() if gradient is None or not gradient.any()]
    assert still == []
    (other,) = both.values()
    assert all(gradient is None for gradient in gradients(other).values())


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("missing", ["class", "mask", "boxes", "caption", "sound", "all"])
def test_without_a_component_the_heads_and_encoders_of_it_get_exactly_no_gradient(side: str, missing: str) -> None:
    out = ("class", "mask", "boxes", "caption", "sound") if missing == "all" else (missing,)
    networks, log = stepped(toy.everything(), side, unlabeled(toy.batch(0, 16), *out))
    assert all(bool(torch.isfinite(value)) for value in log.values())
    own = gradients(modules(networks)[side])
    assert all(gradient is not None and bool(torch.isfinite(gradient).all()) for gradient in own.values())
    assert all(
        log[f"alignment_{name}"] == 0
        for name, component in MEANT.items()
        if component in out and side == "discriminator"
    )
    if side == "generator":
        return
    heads = [networks.side.discriminator.heads[name] for name, component in NEEDS.items() if component in out]
    encoders = [networks.side.conditions.modality(name) for name, component in MEANT.items() if component in out]
    for part in [*heads, *encoders]:
        assert all(g is not None and not g.any() for g in gradients(part).values())


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("off", [name for name in toy.TASKS if name != "generation"])
def test_a_task_of_weight_0_is_bit_for_bit_as_if_it_were_not_there(side: str, off: str) -> None:
    conditions = {name: value for name, value in toy.CONDITIONS.items() if name != "image"}  # which needs the alignment
    tasks = {name: value for name, value in toy.TASKS.items() if name != off}
    without = stepped(
        toy.everything(tasks=copy.deepcopy(tasks), conditions=copy.deepcopy(conditions)), side, toy.batch(0, 16)
    )
    changes = {f"tasks__{off}__weight": 0}
    with_it = stepped(toy.everything(conditions=copy.deepcopy(conditions), **changes), side, toy.batch(0, 16))
    assert_equal(without, with_it)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("off", [name for name in toy.CONDITIONS if name != "domain"])
def test_a_condition_of_share_0_is_bit_for_bit_as_if_it_were_not_there(side: str, off: str) -> None:
    conditions = {name: value for name, value in toy.CONDITIONS.items() if name != off}
    without = stepped(toy.everything(conditions=copy.deepcopy(conditions)), side, toy.batch(0, 16))
    with_it = stepped(toy.everything(**{f"conditions__{off}__share": 0}), side, toy.batch(0, 16))
    assert_equal(without, with_it)


def assert_equal(one: tuple[Networks, dict[str, Tensor]], other: tuple[Networks, dict[str, Tensor]]) -> None:
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(value, other[1][name]) for name, value in one[1].items())
    for name, module in modules(one[0]).items():
        a, b = gradients(module), gradients(modules(other[0])[name])
        assert a.keys() == b.keys()
        for key, x in a.items():
            y = b[key]
            assert x is y is None or (x is not None and y is not None and torch.equal(x, y)), key


PAIRS = list(combinations([name for name in toy.TASKS if name != "generation"], 2))


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_any_two_tasks_train_together_for_20_steps(pair: tuple[str, str]) -> None:
    """Beside generation, which is always on: every number is finite, and every parameter has moved."""
    tasks: dict[str, Any] = {name: copy.deepcopy(toy.TASKS[name]) for name in ("generation", *pair)}
    conditions = {name: {"probability": 0.6} for name in ("class", "domain")}
    config = toy.everything(tasks=tasks, conditions=conditions, balancing__weighting="upgrad")
    networks, d_step, g_step = toy.steps(config)
    start = toy.parameters(networks)
    sides = {"d": (d_step, networks.side, networks.generator), "g": (g_step, networks.generator, networks.side)}
    optimizers = {
        name: torch.optim.Adam(own.parameters(), lr=1e-3, betas=(0.0, 0.99)) for name, (_, own, _) in sides.items()
    }
    for k in range(20):
        for name, (step, _, other) in sides.items():
            optimizers[name].zero_grad()
            with frozen(other):
                loss, log = step(toy.batch(16 * k, 16), (other,))
                loss.backward()
            assert all(bool(torch.isfinite(value)) for value in log.values())
            optimizers[name].step()
    end = toy.parameters(networks)
    assert all(bool(torch.isfinite(value).all()) for value in end.values())
    assert [name for name in start if torch.equal(start[name], end[name])] == []


def test_rectangles_are_drawn_read_and_translated() -> None:
    widths = {"widths": [8, 8, 8]}
    config = toy.everything(
        resolution=[16, 24],
        generator__widths=[8, 8, 8],
        discriminator={**widths, "decoder": 8, "embedding": 8},
        tasks__translation__side=8,
    )
    networks, d_step, g_step = toy.steps(config)
    batch = toy.batch(0, 16, (16, 24))
    for step, other in ((d_step, networks.generator), (g_step, networks.side)):
        with frozen(other):
            loss, _ = step(batch, (other,))
            loss.backward()
        assert bool(torch.isfinite(loss))
    model = Model(networks, config, toy.CARD)
    canvas = model.sample(Prompt.of_classes(torch.tensor([0, -1])), torch.randn(2, 4))
    assert canvas.mask is not None and canvas.boxes is not None
    assert (canvas.image.shape, canvas.mask.shape, canvas.boxes.shape) == (
        (2, 1, 16, 24),
        (2, 2, 16, 24),
        (2, 5, 8, 12),
    )
    read = model.predict(canvas.image)
    assert read.mask_logits is not None and read.boxes is not None and read.content is not None
    assert (read.mask_logits.shape, read.content.shape[2:], read.boxes.shape[2]) == ((2, 2, 16, 24), (8, 12), 6)
    translated = model.translate(
        canvas.image, Prompt(2, {"domain": torch.tensor([0, 1])}, {"domain": torch.ones(2) > 0}), torch.randn(2, 4)
    )
    assert translated is not None and translated.image.shape == canvas.image.shape
