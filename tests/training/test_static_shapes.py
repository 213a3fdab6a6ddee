"""Padded roles and compiled networks: the same shapes in every step, and the same training."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import toy
from helpers.devices import on_gpu
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtgen.config import Config
from mtgen.errors import ConfigError
from mtgen.models.model import Networks, build
from mtgen.networks.blocks import Conv2d
from mtgen.preflight.synthetic_batch import synthetic_batch
from mtgen.schema import Batch, Canvas
from mtgen.training import batch_roles, compiled
from mtgen.training.batch_roles import assign_roles
from mtgen.training.static_shapes import capacities, pad_role
from mtgen.training.step import frozen
from mtgen.training.steps import build_steps

STATIC: dict[str, Any] = {"train__static_shapes": True, "augment__probability": 0.4}


def trained(config: Config, networks: Networks, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """Losses of both steps, and the gradients of all parameters."""
    d_step, g_step, _ = build_steps(config, networks)
    losses, gradients = [], []
    for step, own, other in ((d_step, networks.side, networks.generator), (g_step, networks.generator, networks.side)):
        with frozen(other):
            loss, _ = step(batch, (other,))
            loss.backward()
        losses.append(loss.detach())
        gradients += [p.grad for p in own.parameters() if p.grad is not None]
        for parameter in own.parameters():
            parameter.grad = None
    return losses, gradients


def networks_of(config: Config) -> Networks:
    """Networks whose layers that start as zero are not: every gradient counts."""
    torch.manual_seed(0)
    made, random = build(config, toy.CARD), torch.Generator().manual_seed(4)
    for network in (made.generator, made.side):
        for parameter in network.parameters():
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return made


def test_padded_steps_train_as_others_do() -> None:
    batch = toy.batch(0, 16)
    (eager, eager_gradients), (padded, padded_gradients) = (
        trained(config, networks_of(config), batch)
        for config in (toy.everything(augment__probability=0.4), toy.everything(**STATIC))
    )
    torch.testing.assert_close(padded, eager, rtol=1e-5, atol=1e-6)
    assert len(padded_gradients) == len(eager_gradients)
    for own, other in zip(padded_gradients, eager_gradients, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()) + 1e-7)


def test_the_samples_that_pad_a_role_change_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    config, batch = toy.everything(**STATIC), toy.batch(0, 16)
    _, before = trained(config, networks_of(config), batch)
    others = 0

    def padded_by_another(index: Tensor, size: int, filler: int | None = None) -> tuple[Tensor, Tensor]:
        nonlocal others
        rows, weight = pad_role(index, size, filler)
        if len(index) and len(index) < len(rows):
            others += 1
            rows[len(index) :] = index[-1]
        return rows, weight

    monkeypatch.setattr(batch_roles, "pad_role", padded_by_another)
    _, after = trained(config, networks_of(config), batch)
    assert others
    assert max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True)) == 0.0


@pytest.mark.parametrize("static", [True, False])
def test_all_steps_have_the_same_shapes(static: bool) -> None:
    """Where all samples have all labels: others are not judged with their labels, and the heads get more rows."""
    config = toy.everything(**STATIC | {"train__static_shapes": static})
    networks = networks_of(config)
    compiled.prepare_networks(config, networks)
    d_step, g_step, _ = build_steps(config, networks)
    seen: list[tuple[int, ...]] = []
    for network in (networks.generator, networks.side):
        for layer in network.modules():
            if isinstance(layer, Conv2d | nn.Linear):
                layer.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    shapes = set()
    for number in range(5):
        batch = synthetic_batch(config, toy.CARD, 16, "cpu")
        position = batch.position + 16 * number
        batch = replace(batch, position=position, step_position=position)
        seen.clear()
        for step, other in ((d_step, networks.generator), (g_step, networks.side)):
            with frozen(other):
                step(batch, (other,))
        shapes.add(tuple(seen))
    assert (len(shapes) == 1) == static


@settings(max_examples=60)
@given(
    st.integers(2, 48), st.integers(0, 30), st.integers(2, 5), st.integers(1, 6), st.integers(1, 4), st.integers(0, 99)
)
def test_no_micro_batch_has_more_samples_of_a_role_than_there_is_room_for(
    size: int, number: int, joint: int, penalty: int, every: int, seed: int
) -> None:
    size = max(size, 2 * joint)
    config = toy.everything(
        tasks__generation__joint_every=joint,
        tasks__generation__penalty_every=penalty,
        tasks__translation__every=every,
        seed=seed,
        batch_size=size,
        augment__probability=0.1,
    )
    roles = assign_roles(config, toy.batch(number * size, size), 0.1)
    room = capacities(config, size)
    assert len(roles.plain) <= room["plain"] and len(roles.pairs) <= room["pairs"]
    assert len(roles.penalized) <= room["penalized"]


def test_a_compiled_network_computes_what_it_did() -> None:
    """With the compiler's tracing and its derived backward; its C++ and Triton code would take minutes to compile."""
    image, results = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)), []
    for mode in ("off", "on"):
        config = toy.config(**STATIC, train__compile=mode)
        networks = networks_of(config)
        names = [name for name, _ in networks.side.named_parameters()]
        compiled.prepare_networks(config, networks, backend="aot_eager")
        assert names == [name for name, _ in networks.side.named_parameters()]
        levels = networks.side.discriminator.trunk(Canvas(image))
        sum(level.square().mean() for level in levels).backward()
        gradients = [p.grad for p in networks.side.discriminator.descent.parameters()]
        results.append([*levels, *(g for g in gradients if g is not None)])
    assert len(results[0]) == len(results[1]) > 6
    for eager, own in zip(*results, strict=True):
        torch.testing.assert_close(own, eager, rtol=1e-4, atol=1e-5 * float(eager.detach().abs().max()))


def parameters_after(config: Config, device: str, steps: int) -> list[Tensor]:
    """The parameters after some steps of SGD, which does not make whole steps of rounding errors as Adam does."""
    networks = networks_of(config)
    for network in (networks.generator, networks.side):
        network.to(device)
    compiled.prepare_networks(config, networks, backend="aot_eager" if device == "cpu" else "inductor")
    d_step, g_step, _ = build_steps(config, networks)
    sides = ((d_step, networks.side, networks.generator), (g_step, networks.generator, networks.side))
    optimizers = [torch.optim.SGD(own.parameters(), lr=1e-4) for _, own, _ in sides]
    for number in range(steps):
        batch = toy.batch(16 * number, 16).to(device)
        for (step, _, other), optimizer in zip(sides, optimizers, strict=True):
            optimizer.zero_grad()
            with frozen(other):
                step(batch, (other,))[0].backward()
            optimizer.step()
    return [p.detach().cpu() for _, own, _ in sides for p in own.parameters()]


@pytest.mark.parametrize(
    ("device", "mode", "steps"),
    [
        ("cpu", "on", 1),
        pytest.param("cuda", "on", 4, marks=on_gpu()),
        pytest.param("cuda", "graphs", 6, marks=on_gpu()),  # the first ones warm up and record
    ],
)
def test_compiled_steps_and_cuda_graphs_train_as_eager_steps_do(
    device: str, mode: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    fresh = networks_of(toy.config())
    start = [p.detach() for p in (*fresh.side.parameters(), *fresh.generator.parameters())]
    eager, own = (parameters_after(toy.config(**STATIC, train__compile=mode), device, steps) for mode in ("off", mode))
    moved = 0
    for a, b, before in zip(eager, own, start, strict=True):
        torch.testing.assert_close(
            b - before, a - before, rtol=1e-2, atol=1e-3 * float((a - before).abs().max()) + 1e-8
        )
        moved += not torch.equal(a, before)
    assert moved > len(start) / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__compile": "graphs"}, "train.compile=graphs: a graph has fixed shapes; add train.static_shapes=true"),
        (
            {"train__compile": "on", "balancing__gramian_source": "layer"},
            "train.compile=on: balancing.gramian_source=la",
        ),
        (
            {"train__compile": "graphs", "train__static_shapes": True, "train__accumulation": 2},
            "train.compile=graphs: a graph overwrites the gradients of the micro-batch before",
        ),
    ],
)
def test_what_cannot_be_compiled_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        toy.config(**changes)
    assert str(error.value).startswith(message)
