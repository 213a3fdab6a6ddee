"""All tasks and conditions in one step: what they train, what missing labels do, and that tasks are independent."""

import copy
from itertools import combinations
from typing import Any

import pytest
import torch
from helpers import toy
from helpers.step_contexts import unlabeled
from torch import Tensor, nn

from mtgen.config import Config
from mtgen.models.model import Model, Networks, build
from mtgen.schema import Batch, Prompt
from mtgen.training.step import frozen
from mtgen.training.steps import build_steps

STEPS = ["discriminator", "generator"]
NEEDS = {"classification": "class", "segmentation": "mask", "detection": "boxes", "tagging": "tags"}
MEANT = {"class": "class", "labels": "tags", "caption": "caption", "sound": "sound"}


def stepped(config: Config, trained: str, batch: Batch) -> tuple[Networks, dict[str, Tensor]]:
    """Backward of one step, with all layers active: the networks with their gradients, and the log."""
    networks = build(config, toy.CARD)
    d_step, g_step, _ = build_steps(config, networks)
    for parameter in [*networks.generator.parameters(), *networks.side.parameters()]:
        parameter.data.add_(
            0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
        )
    step, other = (d_step, networks.generator) if trained == "discriminator" else (g_step, networks.side)
    with frozen(other):
        loss, log = step(batch, (other,))
        loss.backward()
    return networks, log


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def modules(networks: Networks) -> dict[str, nn.Module]:
    return {"discriminator": networks.side, "generator": networks.generator}


@pytest.mark.parametrize("trained", STEPS)
def test_one_step_of_all_tasks_trains_all_of_its_own_network_and_nothing_of_the_other(trained: str) -> None:
    networks, log = stepped(toy.everything(batch_size=48), trained, toy.batch(0, 48))
    assert {name.split("_")[0] for name in log} == set(toy.TASKS)
    assert all(bool(torch.isfinite(value)) for value in log.values())
    both = modules(networks)
    still = [name for name, gradient in gradients(both.pop(trained)).items() if gradient is None or not gradient.any()]
    assert still == []
    (other,) = both.values()
    assert all(gradient is None for gradient in gradients(other).values())


@pytest.mark.parametrize("trained", STEPS)
@pytest.mark.parametrize("missing", ["class", "mask", "boxes", "tags", "caption", "sound", "all"])
def test_without_a_component_its_heads_and_encoders_get_exactly_no_gradient(trained: str, missing: str) -> None:
    out = ("class", "mask", "boxes", "tags", "caption", "sound") if missing == "all" else (missing,)
    config = toy.everything(tasks__classification__implied=0)  # by boxes
    networks, log = stepped(config, trained, unlabeled(toy.batch(0, 16), *out))
    assert all(bool(torch.isfinite(value)) for value in log.values())
    own = gradients(modules(networks)[trained])
    assert all(gradient is not None and bool(torch.isfinite(gradient).all()) for gradient in own.values())
    assert all(
        log[f"alignment_{name}"] == 0
        for name, component in MEANT.items()
        if component in out and trained == "discriminator"
    )
    if trained == "generator":
        return
    heads = [networks.side.discriminator.heads[name] for name, component in NEEDS.items() if component in out]
    encoders = [networks.side.conditions.modality(name) for name, component in MEANT.items() if component in out]
    for part in [*heads, *encoders]:
        assert all(g is not None and not g.any() for g in gradients(part).values())


@pytest.mark.parametrize("trained", STEPS)
@pytest.mark.parametrize("off", [name for name in toy.TASKS if name != "generation"])
def test_a_task_of_weight_0_is_bit_for_bit_as_if_it_were_absent(trained: str, off: str) -> None:
    # The condition "image" needs the alignment task.
    conditions = {name: value for name, value in toy.CONDITIONS.items() if name != "image"}
    tasks = {name: value for name, value in toy.TASKS.items() if name != off}
    without = stepped(
        toy.everything(tasks=copy.deepcopy(tasks), conditions=copy.deepcopy(conditions)), trained, toy.batch(0, 16)
    )
    changes = {f"tasks__{off}__weight": 0}
    with_it = stepped(toy.everything(conditions=copy.deepcopy(conditions), **changes), trained, toy.batch(0, 16))
    assert_equal(without, with_it)


@pytest.mark.parametrize("trained", STEPS)
@pytest.mark.parametrize("off", [name for name in toy.CONDITIONS if name != "domain"])
def test_a_condition_of_probability_0_is_bit_for_bit_as_if_it_were_absent(trained: str, off: str) -> None:
    conditions = {name: value for name, value in toy.CONDITIONS.items() if name != off}
    without = stepped(toy.everything(conditions=copy.deepcopy(conditions)), trained, toy.batch(0, 16))
    with_it = stepped(toy.everything(**{f"conditions__{off}__probability": 0}), trained, toy.batch(0, 16))
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
    """Together with generation: all numbers are finite, and all parameters have changed."""
    tasks: dict[str, Any] = {name: copy.deepcopy(toy.TASKS[name]) for name in ("generation", *pair)}
    conditions = {name: {"probability": 0.6} for name in ("class", "domain")}
    config = toy.everything(tasks=tasks, conditions=conditions, balancing__weighting="upgrad")
    networks, d_step, g_step = toy.steps(config)
    start = toy.parameters(networks)
    pairs = {"d": (d_step, networks.side, networks.generator), "g": (g_step, networks.generator, networks.side)}
    optimizers = {
        name: torch.optim.Adam(own.parameters(), lr=1e-3, betas=(0.0, 0.99)) for name, (_, own, _) in pairs.items()
    }
    for k in range(20):
        for name, (step, _, other) in pairs.items():
            optimizers[name].zero_grad()
            with frozen(other):
                loss, log = step(toy.batch(16 * k, 16), (other,))
                loss.backward()
            assert all(bool(torch.isfinite(value)) for value in log.values())
            optimizers[name].step()
    end = toy.parameters(networks)
    assert all(bool(torch.isfinite(value).all()) for value in end.values())
    assert [name for name in start if torch.equal(start[name], end[name])] == []


def test_rectangles_are_generated_predicted_and_translated() -> None:
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
    prediction = model.predict(canvas.image)
    assert prediction.mask_logits is not None and prediction.boxes is not None and prediction.content is not None
    assert (prediction.mask_logits.shape, prediction.content.shape[2:], prediction.boxes.shape[2]) == (
        (2, 2, 16, 24),
        (8, 12),
        6,
    )
    translated = model.translate(
        canvas.image, Prompt(2, {"domain": torch.tensor([0, 1])}, {"domain": torch.ones(2) > 0}), torch.randn(2, 4)
    )
    assert translated is not None and translated.image.shape == canvas.image.shape
