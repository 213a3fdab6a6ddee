"""Weightings that read losses, compared with their papers' update rules, derived by autograd."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mtgen.balancing.weighting import GateContext, Weighting
from mtgen.config import WEIGHTINGS

TASKS, STEPS = 3, 6


def course(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Gramians whose diagonals have mean 1, and losses that fall at different rates, with noise."""
    random = torch.Generator().manual_seed(seed)
    rates = torch.rand(TASKS, generator=random, dtype=torch.float64) * 0.2
    for step in range(STEPS):
        rows = torch.randn(TASKS, 7, generator=random, dtype=torch.float64)
        rows = rows / rows.square().sum(1).mean().sqrt()
        noise = torch.exp(0.1 * torch.randn(TASKS, generator=random, dtype=torch.float64))
        yield rows @ rows.T, torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64) * torch.exp(-rates * step) * noise


def weights_of(weighting: Weighting, gramian: Tensor, losses: Tensor, images: float = 1.0) -> Tensor:
    return weighting(gramian, GateContext.of_all(TASKS, images, losses))


@pytest.mark.parametrize("seed", [0, 1])
def test_uncertainty_learns_each_log_variance_by_descent(seed: int) -> None:
    """Kendall et al. 2018, eq. 10: gradient descent on e^-s L + s for each task."""
    weighting, s = WEIGHTINGS["uncertainty"](rate=0.1), torch.zeros(TASKS, dtype=torch.float64)
    for gramian, losses in course(seed):
        weights = weights_of(weighting, gramian, losses)
        assert torch.allclose(weights / weights.sum(), torch.exp(-s) / torch.exp(-s).sum())
        s.requires_grad_(True)
        (slope,) = torch.autograd.grad((torch.exp(-s) * losses + s).sum(), s)
        s = (s - 0.1 * slope).detach()
    assert weights[0] > weights[1] > weights[2], (
        "the smaller the loss, the smaller the variance and the larger the weight"
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_dwa_weights_by_how_much_each_loss_fell_from_one_window_to_the_next(seed: int) -> None:
    """Liu, Johns and Davison 2019, eq. 7: K softmax(r / T), r = L(t-1) / L(t-2), and 1 in the first two windows."""
    weighting, seen = WEIGHTINGS["dwa"](temperature=0.5, window=20), []
    for gramian, losses in course(seed):
        for part in (0.9, 1.1):  # two calls of ten images make a window
            weights = weights_of(weighting, gramian, part * losses, images=10)
            ratio = seen[-1] / seen[-2] if len(seen) >= 2 else torch.ones(TASKS, dtype=torch.float64)
            assert torch.allclose(weights, TASKS * torch.softmax(ratio / 0.5, 0))
        seen.append(losses)


@pytest.mark.parametrize("seed", [0, 1])
def test_famo_updates_its_logits_by_how_much_the_log_losses_fell(seed: int) -> None:
    """Liu et al. 2023, algorithm 1: xi -= beta (grad of softmax(xi) . fall + gamma xi), weights softmax(xi) / loss."""
    weighting, xi = WEIGHTINGS["famo"](rate=0.5, decay=0.01), torch.zeros(TASKS, dtype=torch.float64)
    before: Tensor | None = None
    for gramian, losses in course(seed):
        weights = weights_of(weighting, gramian, losses)
        if before is not None:
            xi.requires_grad_(True)
            (slope,) = torch.autograd.grad(torch.softmax(xi, 0) @ (before.log() - losses.log()), xi)
            xi = (xi - 0.5 * (slope + 0.01 * xi)).detach()
        expected = torch.softmax(xi, 0) / losses
        assert torch.allclose(weights, expected / expected.sum() * TASKS)
        before = losses


@pytest.mark.parametrize("seed", [0, 1])
def test_gradnorm_descends_on_the_distance_of_norms_from_their_targets(seed: int) -> None:
    """Chen et al. 2018, eq. 2: sum of |w n - mean(w n) r^alpha|, the second term held fixed; weights sum to K."""
    weighting, w = WEIGHTINGS["gradnorm"](alpha=1.5, rate=0.05), torch.ones(TASKS, dtype=torch.float64)
    first: Tensor | None = None
    for gramian, losses in course(seed):
        weights = weights_of(weighting, gramian, losses)
        first = losses if first is None else first
        norms, slowness = gramian.diagonal().sqrt(), losses / first
        w.requires_grad_(True)
        wanted = ((w * norms).mean() * (slowness / slowness.mean()) ** 1.5).detach()
        (slope,) = torch.autograd.grad((w * norms - wanted).abs().sum(), w)
        w = (w - 0.05 * slope).detach()
        w = w * TASKS / w.sum()
        assert torch.allclose(weights, w)


@pytest.mark.parametrize("name", ["uncertainty", "dwa", "famo", "gradnorm"])
def test_a_task_that_is_missing_in_a_step_keeps_its_state(name: str) -> None:
    weighting = WEIGHTINGS[name]()
    for gramian, losses in course(2):
        weights_of(weighting, gramian, losses)
    before = {key: tensor.clone() for key, tensor in weighting.memory.items()}
    active = torch.tensor([0, 2])
    context = GateContext(active, TASKS, torch.ones(2, dtype=torch.float64), losses=losses[active])
    weights = weighting(gramian[active][:, active], context)
    assert weights.shape == (2,)
    assert all(
        torch.equal(tensor[1], before[key][1])
        for key, tensor in weighting.memory.items()
        if name != "gradnorm" or key != "weights"
    )


ON_DEVICE = [name for name in WEIGHTINGS if getattr(WEIGHTINGS[name], "on_device", False)]


@pytest.mark.parametrize("name", ON_DEVICE)
def test_rows_without_a_gradient_count_as_if_they_were_left_out(name: str) -> None:
    """What a weighting on the device gets, compared with what it would get on the host."""
    left_out, marked = WEIGHTINGS[name](), WEIGHTINGS[name]()
    for number, (gramian, losses) in enumerate(course(3)):
        there = torch.ones(TASKS, dtype=torch.bool)
        there[number % TASKS] = number % 2 == 0
        active, preference = there.nonzero().flatten(), torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
        few = GateContext(active, TASKS, preference[active], 9_000, losses[active])
        all_rows = GateContext(torch.arange(TASKS), TASKS, preference, 9_000, losses * there, there)
        expected = left_out(gramian[active][:, active], few)
        torch.testing.assert_close(marked(gramian * (there[:, None] & there), all_rows)[active], expected)
    assert left_out.memory.keys() == marked.memory.keys()
    for key, kept in left_out.memory.items():
        torch.testing.assert_close(marked.memory[key], kept, equal_nan=True)
