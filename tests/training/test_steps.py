"""The two steps: what they train, where gradients stop, and that tasks do not affect each other."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import toy
from helpers.step_contexts import generator_context, task_features, unlabeled
from helpers.step_contexts import networks as networks_of
from torch import Tensor, nn

from mtgen.conditions.layout import mask_layout
from mtgen.config import Config
from mtgen.models.model import Networks
from mtgen.networks.center_maps import encode, sharpen
from mtgen.schema import Batch, Canvas
from mtgen.tasks.base import TaskFeatures
from mtgen.training.batch_roles import assign_roles
from mtgen.training.step import frozen

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
        for tensor in (canvas.image, canvas.mask_logits):
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
    assert canvas.mask_logits is not None
    assert canvas.image.grad is not None
    assert canvas.mask_logits.grad is not None
    to_image, to_mask = (x.flatten(1).abs().sum(dim=1) for x in (canvas.image.grad, canvas.mask_logits.grad))
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


@pytest.mark.parametrize("reader", ["segmentation", "detection"])
def test_what_a_task_reads_of_another_gives_that_one_no_gradient(reader: str) -> None:
    config = toy.config(tasks={name: {} for name in ("generation", "classification", "tagging", "detection", reader)})
    networks, d_step, _ = toy.steps(config)
    batch, tasks = labeled(), {task.name: task for task in networks.tasks}
    assert batch.boxes is not None
    assert set(tasks[reader].sources) == {"classification", "tagging"}
    context = d_step._context(d_step.assign_roles(batch, networks.generator), networks.generator)
    levels = networks.side.discriminator.trunk(context.real)
    image_only = [level[: context.num_image_only] for level in levels]
    losses = tasks[reader].discriminator_losses(context, TaskFeatures(image_only, levels[0]))
    torch.stack(list(losses.values())).sum().backward()
    heads = networks.side.discriminator.heads
    for source in ("classification", "tagging"):
        assert all(gradient is None for gradient in gradients(heads[source]).values())
        factors = heads[reader].reader.factors[source]  # type: ignore[union-attr, index]
        assert bool(factors.grad.any())


def test_a_perfect_generated_canvas_is_judged_exactly_as_the_real_one_however_it_is_augmented() -> None:
    config = toy.everything(augment__probability=0.9)
    networks, d_step, _ = toy.steps(config)
    roles = d_step.assign_roles(labeled(), networks.generator)
    context = d_step._context(roles, networks.generator)
    original = context.original
    assert original.boxes is not None and context.real.mask is not None and context.real.boxes is not None
    mask = mask_layout(original.mask, 2)
    boxes = encode(original.boxes, 3, (4, 4)).canvas()
    # soft, and right: the most likely class is the true one, and the maps are those of the true boxes
    canvas = Canvas(original.image, 0.3 * mask + 0.35, boxes=boxes)
    judged = d_step.judged(canvas, roles, d_step.warp(roles, "real"))
    assert judged.mask is not None and judged.boxes is not None
    assert bool(d_step.warp(roles, "real").changed.any())
    assert torch.allclose(judged.image, context.real.image, atol=1e-6)
    assert torch.allclose(judged.mask, context.real.mask, atol=1e-6)
    apart = [row for row in range(16) if _same_after_decoding(boxes[row : row + 1])]
    assert len(apart) > 8
    assert torch.allclose(judged.boxes[apart], context.real.boxes[apart], atol=1e-5)
    tasks = {**toy.TASKS, "generation": {"hard_labels": False}}
    _, without, _ = toy.steps(toy.everything(augment__probability=0.9, tasks=tasks))
    told = without.judged(canvas, roles, without.warp(roles, "real"))
    assert told.mask is not None and not torch.allclose(told.mask, context.real.mask, atol=0.1)


def _same_after_decoding(maps: Tensor) -> bool:
    """Whether no two boxes are so near that their maps cannot be told apart."""
    return torch.allclose(sharpen(maps), maps, atol=1e-5)


def test_hard_labels_have_the_gradient_of_the_soft_ones() -> None:
    networks, d_step, _ = toy.steps(toy.everything(augment__probability=0.0))
    roles = d_step.assign_roles(labeled(), networks.generator)
    logits = torch.randn(16, 2, 8, 8, requires_grad=True)
    canvas = Canvas.of_logits(torch.zeros(16, 1, 8, 8), logits, torch.zeros(16, 5, 4, 4))
    judged = d_step.judged(canvas, roles, d_step.warp(roles, "fake"))
    assert judged.mask is not None
    assert set(judged.mask.detach().unique().tolist()) <= {0.0, 1.0}
    weight = torch.randn(16, 2, 8, 8)
    (hard,) = torch.autograd.grad((judged.mask * weight).sum(), logits)
    (soft,) = torch.autograd.grad((logits.softmax(1) * weight).sum(), logits)
    assert torch.allclose(hard, soft, atol=1e-6)


def test_a_confidently_wrong_pixel_of_a_generated_mask_gets_a_gradient() -> None:
    context = generator_context(toy.config(), networks_of(toy.config()))
    logits = torch.zeros(16, 2, 8, 8)
    logits[:, 0] = 40.0
    logits.requires_grad_()
    fake = replace(context.fake, mask=logits.softmax(1), mask_logits=logits)
    context = replace(context, fake=fake)
    segmentation = next(task for task in networks_of(toy.config()).tasks if task.name == "segmentation")
    losses = segmentation.generator_losses(context, task_features(context, context.fake))
    (gradient,) = torch.autograd.grad(losses["distillation"], logits)
    assert bool((gradient[: context.num_image_only].abs().amax(1) > 0).all())
