"""Adam with a guard and a loss scale: torch's Adam for finite gradients, and no change at all otherwise."""

import copy
from collections.abc import Callable

import pytest
import torch
from helpers.devices import DEVICES
from torch import Tensor, nn

from mtgen.training.optimizer import GuardedAdam

BETAS = (0.0, 0.99)


def network(device: str = "cpu") -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).to(device)


def guarded(module: nn.Module, scaled: bool = False) -> GuardedAdam:
    return GuardedAdam(module.parameters(), lr=1e-2, beta2=BETAS[1], partitioned=False, scaled=scaled)


def loss(module: nn.Module, step: int) -> Tensor:
    random = torch.Generator().manual_seed(step)
    return module(torch.randn(16, 5, generator=random).to(next(module.parameters()).device)).square().mean()


def take(
    module: nn.Module, optimizer: torch.optim.Optimizer, step: int, spoil: Callable[[Tensor], object] | None = None
) -> None:
    optimizer.zero_grad()
    scale = getattr(optimizer, "loss_scale", None)
    (loss(module, step) * (1.0 if scale is None else scale)).backward()
    if spoil:
        gradient = next(module.parameters()).grad
        assert gradient is not None
        spoil(gradient)
    optimizer.step()


def everything(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Parameters, moments and step counts, copied."""
    state = [value for kept in optimizer.state.values() for value in kept.values()]
    return [torch.as_tensor(value).detach().clone() for value in [*module.parameters(), *state]]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_on_finite_gradients_it_is_torchs_adam_bit_for_bit(device: str) -> None:
    """On a GPU, torch's fused one."""
    ours, theirs, fused = network(device), network(device), device == "cuda"
    a, b = guarded(ours), torch.optim.Adam(theirs.parameters(), lr=1e-2, betas=BETAS, foreach=False, fused=fused)
    for step in range(8):
        take(ours, a, step)
        take(theirs, b, step)
    assert equal(everything(ours, a), everything(theirs, b))


def jump(gradient: Tensor) -> Tensor:
    return gradient.mul_(1e6)


def test_a_jump_is_clipped_to_a_multiple_of_the_usual_norm_and_forgotten_soon() -> None:
    """Without clipping, Adam makes a step of ten learning rates, and the steps after it are almost zero."""
    moved = {}
    for clip in (0.0, 3.0):
        module = network()
        optimizer = GuardedAdam(
            module.parameters(), lr=1e-4, beta2=BETAS[1], partitioned=False, scaled=False, clip=clip
        )
        for step in range(60):
            take(module, optimizer, step)
        usual = optimizer.usual.item()
        steps = []
        for step in range(60, 70):
            before = module[0].weight.detach().clone()
            take(module, optimizer, step, jump if step == 60 else None)
            steps.append((module[0].weight - before).abs().max().item())  # type: ignore[operator]
        moved[clip] = (steps[0] / 1e-4, steps[-1] / 1e-4)
        assert optimizer.usual.item() < 1.1 * usual or not clip
    assert moved[0.0][0] == pytest.approx(10 * (1 - 0.99**61) ** 0.5, rel=0.01) and moved[0.0][1] < 0.01
    assert moved[3.0][0] < moved[0.0][0] and moved[3.0][1] > 0.1


def test_the_usual_norm_is_the_average_of_the_clipped_norms_and_is_checkpointed() -> None:
    module = network()
    optimizer = GuardedAdam(module.parameters(), lr=0.0, beta2=BETAS[1], partitioned=False, scaled=False, clip=2.0)
    norms, expected = [], 0.0
    for step in range(12):
        take(module, optimizer, step, (lambda gradient: gradient.mul_(50)) if step == 7 else None)
        norms.append(optimizer.norm.item())
        expected = 0.98 * expected + 0.02 * min(norms[-1], 2 * expected) if expected else norms[-1]
    assert max(norms) > 2 * expected
    assert optimizer.usual.item() == pytest.approx(expected, rel=1e-5)
    assert optimizer.cut.item() == 1
    other = GuardedAdam(network().parameters(), lr=0.0, beta2=BETAS[1], partitioned=False, scaled=False, clip=2.0)
    other.load_counters(optimizer.counters())
    assert torch.equal(other.usual, optimizer.usual)


def test_a_gradient_that_is_not_finite_does_not_change_the_usual_norm() -> None:
    module = network()
    optimizer = GuardedAdam(module.parameters(), lr=1e-3, beta2=BETAS[1], partitioned=False, scaled=False, clip=2.0)
    take(module, optimizer, 0)
    before = optimizer.usual.clone()
    for bad in BAD:
        take(module, optimizer, 1, lambda gradient, bad=bad: gradient[3, 2].fill_(bad))  # type: ignore[misc]
    assert torch.equal(optimizer.usual, before)
    take(module, optimizer, 2)
    assert optimizer.skipped.item() == 3 and not torch.equal(optimizer.usual, before)


BAD = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("bad", BAD)
def test_one_bad_number_does_not_change_parameters_moments_and_step_count(
    bad: float, scaled: bool, device: str
) -> None:
    module = network(device)
    optimizer = guarded(module, scaled)
    take(module, optimizer, 0)
    before = everything(module, optimizer)
    take(module, optimizer, 1, lambda gradient: gradient[3, 2].fill_(bad))
    assert equal(everything(module, optimizer), before)
    assert (optimizer.skipped.item(), optimizer.in_a_row.item()) == (1, 1)


def test_a_bad_step_has_no_effect_on_later_steps() -> None:
    ours, theirs = network(), network()
    a, b = guarded(ours), guarded(theirs)
    for step in range(4):
        take(ours, a, step)
        take(ours, a, step + 100, lambda gradient: gradient.fill_(float("nan")))
        take(theirs, b, step)
    assert equal(everything(ours, a), everything(theirs, b))
    assert (a.skipped.item(), a.in_a_row.item()) == (4, 1)


def test_bad_steps_in_a_row_are_counted_until_a_good_one() -> None:
    module = network()
    optimizer = guarded(module)
    counts = []
    for step, bad in enumerate([False, True, True, True, False, True]):
        take(module, optimizer, step, (lambda gradient: gradient.fill_(float("inf"))) if bad else None)
        counts.append((optimizer.skipped.item(), optimizer.in_a_row.item()))
    assert counts == [(0, 0), (1, 1), (2, 2), (3, 3), (3, 0), (4, 1)]


@pytest.mark.parametrize("scaled", [False, True])
def test_the_norm_is_that_of_the_whole_unscaled_gradient(scaled: bool) -> None:
    module = network()
    optimizer = guarded(module, scaled)
    gradients = torch.autograd.grad(loss(module, 0), list(module.parameters()))
    take(module, optimizer, 0)
    assert optimizer.norm.item() == pytest.approx(torch.cat([g.flatten() for g in gradients]).norm().item(), rel=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_a_scaled_loss_trains_as_an_unscaled_one(device: str) -> None:
    """The scale is a power of two, so no bit is lost, also after it was halved."""
    ours, theirs = network(device), network(device)
    a, b = guarded(ours, scaled=True), guarded(theirs)
    for step in range(6):
        take(ours, a, step)
        take(theirs, b, step)
        if step == 2:
            take(ours, a, 100, lambda gradient: gradient.fill_(float("inf")))
    assert equal([p.detach() for p in ours.parameters()], [p.detach() for p in theirs.parameters()])
    assert a.loss_scale is not None
    assert a.loss_scale.item() == 2.0**15


@pytest.mark.parametrize("device", DEVICES)
def test_the_loss_scale_halves_after_a_bad_step_and_doubles_after_enough_good_ones(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GuardedAdam, "GROWTH_INTERVAL", 3)
    module = network(device)
    optimizer = guarded(module, scaled=True)
    assert optimizer.loss_scale is not None
    scales = []
    for step, bad in enumerate([True, True, False, False, False, False, False, True, False, False, False]):
        take(module, optimizer, step, (lambda gradient: gradient.fill_(float("inf"))) if bad else None)
        scales.append(int(torch.log2(optimizer.loss_scale).item()))
    assert scales == [15, 14, 14, 14, 15, 15, 15, 14, 14, 14, 15]


def test_without_scaling_there_is_no_loss_scale() -> None:
    assert guarded(network()).loss_scale is None


def test_counters_are_saved_and_restored() -> None:
    module = network()
    optimizer = guarded(module, scaled=True)
    for step in range(3):
        take(module, optimizer, step, (lambda gradient: gradient.fill_(float("inf"))) if step < 2 else None)
    kept = copy.deepcopy(optimizer.counters())
    fresh = guarded(network(), scaled=True)
    fresh.load_counters(kept)
    assert (
        fresh.counters()
        == kept
        == {"skipped": 2, "in_a_row": 0, "usual": 0.0, "cut": 0.0, "loss_scale": 2.0**14, "good_steps": 1}
    )


def test_a_run_that_changes_to_half_precision_starts_with_a_fresh_loss_scale() -> None:
    fresh = guarded(network(), scaled=True)
    fresh.load_counters({"skipped": 2, "in_a_row": 1})
    assert fresh.counters() == {
        "skipped": 2,
        "in_a_row": 1,
        "usual": 0.0,
        "cut": 0.0,
        "loss_scale": 2.0**16,
        "good_steps": 0,
    }
