"""Both steps of every kind of configuration on a pretended device: what a GPU would wait for, or refuse."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from helpers.devices import on_gpu
from helpers.pretended_device import DEVICE, Crossings, watched

from mtgen.config import WEIGHTINGS, Config, load
from mtgen.preflight.cost import build_on_meta
from mtgen.preflight.step_speed import StepLoop
from mtgen.preflight.synthetic_batch import synthetic_batch
from mtgen.schema import Batch, DatasetCard
from mtgen.training.step import frozen
from mtgen.training.steps import build_steps
from mtgen.utils.packed_copy import copy_packed

CONFIGS = ["digits-32", "digits-domains-32", "scenes-64", "coco-256", "digits-all-32"]


def config_of(name: str, *assignments: str) -> Config:
    data = [] if name == "digits-domains-32" else ["data.path=nowhere"]
    return load(f"configs/{name}.yaml", [*data, "precision=bf16", *assignments])


def card_of(classes: int) -> DatasetCard:
    masks = [str(number) for number in range(classes + 1)]
    return DatasetCard(name="x", classes=masks[1:], mask_classes=masks, domains=["a", "b"], splits={})


def batch_of(config: Config, card: DatasetCard, begin: int) -> Batch:
    """A micro-batch on the device, of which some samples lack a label."""
    position = torch.arange(begin, begin + config.micro_batch)
    random = torch.Generator().manual_seed(begin)
    present = {name: torch.rand(len(position), generator=random) < 0.8 for name in config.components}
    made = synthetic_batch(config, card, len(position), DEVICE)
    return replace(made, position=position, step_position=position, step_present=present)


def crossings(config: Config, classes: int = 10) -> Iterator[tuple[str, Crossings, Crossings]]:
    """A micro-batch of each step: the step's name, and the crossings in its forward and in its backward."""
    card = card_of(classes)
    networks = build_on_meta(config, card)
    d_step, g_step, _ = build_steps(config, networks)
    for name, step, other in (("discriminator", d_step, networks.generator), ("generator", g_step, networks.side)):
        batch = batch_of(config, card, 0)
        with frozen(other):
            with watched() as forward:
                loss, _ = step(batch, (other,))
            with watched() as backward:
                loss.backward()
        for found in (forward, backward):
            for line in [line for line in found.blocking if line.startswith("networks/device_constants.py")]:
                del found.blocking[line]  # copied once in a run, not once in a step
        yield name, forward, backward


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_has_one_copy_to_the_device_for_which_nothing_waits(name: str) -> None:
    for _, forward, backward in crossings(config_of(name), 80 if "coco" in name else 10):
        assert not forward.mixed and not backward.mixed
        assert not forward.blocking and not forward.syncs
        (line,) = forward.copies
        assert line.startswith("utils/packed_copy.py") and forward.copies.total() == 1
        assert not backward.blocking and not backward.syncs and not backward.copies


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_gpu())])
def test_torch_finds_no_wait_in_a_step_on_a_gpu(device: str, name: str) -> None:
    """What the tests on the pretended device say, asked of a real one."""
    config = config_of(name, "workers=1", "batch_size=16")
    loop = StepLoop(config, card_of(80 if name == "coco-256" else 10), torch.device(device))
    assert loop.check_syncs() == "neither step lets the host wait for the GPU"


PREFERENCE = "balancing.preference={generation: 2}"


@pytest.mark.parametrize("weighting", [name for name in WEIGHTINGS if getattr(WEIGHTINGS[name], "on_device", False)])
def test_a_weighting_on_the_device_is_not_waited_for(weighting: str) -> None:
    words = [f"balancing.weighting={weighting}", PREFERENCE, "balancing.warmup=100", "balancing.ema_half_life=100"]
    for name, forward, backward in crossings(config_of("digits-32", *words)):
        assert not forward.syncs and not forward.blocking and not forward.mixed, name
        assert not backward.syncs and not backward.blocking and not backward.mixed and not backward.copies, name


def test_a_weighting_on_the_host_waits_once_for_its_gramian() -> None:
    for _, forward, backward in crossings(config_of("digits-32", "balancing.weighting=upgrad")):
        assert not forward.blocking and not forward.syncs and not forward.mixed
        assert not backward.mixed and not backward.blocking
        assert list(backward.syncs.values()) == [1]


def test_the_pretended_device_sees_what_a_gpu_would_wait_for() -> None:
    x = torch.zeros(3, 2, device=DEVICE, requires_grad=True)
    with watched() as found:
        torch.ones(3).to(DEVICE)
        torch.tensor([1, 2], device=DEVICE)
        x.new_tensor([1.0])
        torch.ones(3).to(DEVICE, non_blocking=True)
        y = (x * 2).sum()
        y.backward()
        if y.item():
            y.cpu()
        torch.gather(x.detach(), 0, torch.zeros(1, 2, dtype=torch.int64))
        with pytest.raises(RuntimeError, match="device meta"):
            x.detach() * torch.ones(3, 2)
    assert (found.blocking.total(), found.copies.total(), found.syncs.total(), found.mixed.total()) == (3, 1, 2, 2)


def test_packed_tensors_arrive_as_they_were_in_one_copy() -> None:
    tensors = {
        "flags": torch.tensor([True, False, True]),
        "numbers": torch.arange(5),
        "none": torch.zeros(0, dtype=torch.int64),
        "matrix": torch.randn(3, 2, 3),
    }
    on_cpu = copy_packed(tensors, torch.device("cpu"))
    assert all(on_cpu[name] is tensor for name, tensor in tensors.items())
    with watched() as found:
        there = copy_packed(tensors, DEVICE)
    assert found.copies.total() == 1 and not found.blocking
    assert {name: (t.dtype, t.shape) for name, t in there.items()} == {
        name: (t.dtype, t.shape) for name, t in tensors.items()
    }
