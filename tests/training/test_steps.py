"""The two steps: what they train, where gradients stop, and that tasks do not affect each other."""

from typing import Any

import pytest
import torch
from helpers import toy
from helpers.step_contexts import unlabeled
from torch import Tensor, nn

from mtgen.config import Config
from mtgen.models.model import Networks
from mtgen.schema import Batch, Canvas
from mtgen.training.batch_roles import assign_roles
from mtgen.training.steps import frozen

NETWORKS = ["discriminator", "generator"]
FOUR = ["generation", "classification", "segmentation", "reconstruction"]


def only(*names: str, **changes: Any) -> Config:
    return toy.config(tasks={name: {} for name in names}, **changes)


def step(config: Config, network: str, batch: Batch) -> tuple[Networks, dict[str, Tensor], list[Canvas]]:
    """One step's backward: the networks with their gradients, the log, and the generated canvases."""
    networks, d_step, g_step = toy.steps(config)
    for parameter in [*networks.generator.parameters(), *networks.side.parameters()]:
        parameter.data.add_(
            0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
        )
    generated: list[Canvas] = []

    def keep(module: nn.Module, inputs: Any, canvas: Canvas) -> None:
        for tensor in (canvas.image, canvas.mask):
            if tensor is not None and tensor.requires_grad:
                tensor.retain_grad()
        generated.append(canvas)

    networks.generator.register_forward_hook(keep)
    trained, other = (d_step, networks.generator) if network == "discriminator" else (g_step, networks.side)
    with frozen(other):
        loss, log = trained(batch, (other,))
        loss.backward()
    assert loss.item() == pytest.approx(sum(value.item() for value in log.values()), rel=1e-5)
    return networks, log, generated


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def labeled() -> Batch:
    """A batch in which every sample has its class and mask."""
    batch = toy.batch(0, 16)
    for has in batch.present.values():
        has.fill_(True)
    batch.mask.clamp_(max=1)
    return batch


@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_trains_all_of_its_own_network_and_nothing_of_the_other(network: str) -> None:
    networks, _, _ = step(only(*FOUR), network, toy.batch(0, 16))
    both = {"discriminator": networks.side, "generator": networks.generator}
    own = gradients(both.pop(network))
    (other,) = both.values()
    assert all(gradient is not None and bool(gradient.any()) for gradient in own.values()), [
        n for n, g in own.items() if g is None
    ]
    assert all(gradient is None for gradient in gradients(other).values())


def test_freezing_ends_with_the_step_even_if_it_fails() -> None:
    layer, fixed = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ZeroDivisionError), frozen(layer, fixed):
        assert not any(p.requires_grad for p in layer.parameters())
        _ = 1 / 0
    assert all(p.requires_grad for p in layer.parameters())
    assert not any(p.requires_grad for p in fixed.parameters())  # what was frozen before stays frozen


@pytest.mark.parametrize("joint", [False, True])
def test_the_joint_judgment_trains_the_mask_and_with_joint_gradient_the_image_too(joint: bool) -> None:
    config = only(
        "generation", tasks__generation__joint_gradient=joint, balancing__canvas="none", augment__probability=0.0
    )
    batch = labeled()
    image_only = assign_roles(config, batch, config.augment.probability).num_image_only
    assert 0 < image_only < 16
    _, _, (canvas,) = step(config, "generator", batch)
    assert canvas.mask is not None
    assert canvas.image.grad is not None
    assert canvas.mask.grad is not None
    to_image, to_mask = (x.flatten(1).abs().sum(dim=1) for x in (canvas.image.grad, canvas.mask.grad))
    assert bool((to_image[:image_only] > 0).all())
    assert bool((to_mask[image_only:] > 0).all())
    assert not to_mask[:image_only].any()
    assert bool((to_image[image_only:] > 0).all()) == bool(to_image[image_only:].any()) == joint


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("gate", ["none", "equal", "upgrad"])
def test_a_task_with_weight_0_changes_nothing_bit_for_bit(network: str, gate: str) -> None:
    changes = {"balancing__weighting": gate, "balancing__canvas": gate}
    without = step(only("generation", "classification", **changes), network, toy.batch(0, 16))
    off = {"tasks__segmentation__weight": 0, "tasks__reconstruction__weight": 0}
    with_it = step(only(*FOUR, **changes, **off), network, toy.batch(0, 16))
    assert without[1].keys() == with_it[1].keys()
    assert all(torch.equal(without[1][name], with_it[1][name]) for name in without[1])
    for a, b in ((without[0].generator, with_it[0].generator), (without[0].side, with_it[0].side)):
        pairs = list(zip(gradients(a).items(), gradients(b).items(), strict=True))
        assert all(
            m == n and (x is y is None or (x is not None and y is not None and torch.equal(x, y)))
            for (m, x), (n, y) in pairs
        )


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("gate", ["equal", "upgrad", "mgda", "pcgrad"])
def test_a_batch_without_labels_gives_finite_gradients_and_0_for_the_heads_that_need_labels(
    network: str, gate: str
) -> None:
    config = only(*FOUR, balancing__weighting=gate, balancing__canvas=gate)
    networks, log, _ = step(config, network, unlabeled(toy.batch(0, 16)))
    for module in (networks.generator, networks.side):
        assert all(g is None or bool(torch.isfinite(g).all()) for g in gradients(module).values())
    losses = {
        name: value.item() for name, value in log.items() if name.startswith(("classification", "segmentation/cross"))
    }
    assert set(losses.values()) == {0.0}
    if network == "discriminator":
        for name in ("classification", "segmentation"):
            found = gradients(networks.side.discriminator.heads[name])
            assert all(g is not None and not g.any() for g in found.values())


@pytest.mark.parametrize("name", FOUR[1:])
def test_a_tasks_weight_is_a_factor_of_its_losses(name: str) -> None:
    logs = []
    for weight in (1.0, 2.5):
        logs.append(
            step(only("generation", name, **{f"tasks__{name}__weight": weight}), "discriminator", toy.batch(0, 16))[1]
        )
    for key, value in logs[0].items():
        assert logs[1][key].item() == pytest.approx(value.item() * (2.5 if key.startswith(name) else 1), rel=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_is_a_function_of_batch_and_parameters_alone(network: str) -> None:
    torch.manual_seed(1)
    first = step(only(*FOUR), network, toy.batch(32, 16))
    torch.manual_seed(2)
    again = step(only(*FOUR), network, toy.batch(32, 16))
    assert all(torch.equal(value, again[1][name]) for name, value in first[1].items())
