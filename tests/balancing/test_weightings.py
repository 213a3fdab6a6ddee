"""Weightings that TorchJD lacks, compared with their papers' equations; preferences, memory, and a toy problem."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torchjd.aggregation import AlignedMTL, FairGradWeighting, SDMGradWeighting, UPGrad

from mtgen.balancing.gate import Gate
from mtgen.balancing.weighting import GateContext, Weighting
from mtgen.config import WEIGHTINGS

CASES = [(tasks, seed) for tasks in (2, 3, 5) for seed in (0, 1)]


def jacobian(tasks: int, seed: int) -> Tensor:
    """`[K,9]` gradients, two of them in conflict, their mean squared length 1."""
    rows = torch.randn(tasks, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows[0] = 0.3 * rows[0] - 0.8 * rows[1]
    return rows / rows.square().sum(1).mean().sqrt()


def through(gate: Gate, rows: Tensor) -> Tensor:
    """The gradient of a shared vector when the gradient of task k is row k."""
    x = torch.zeros(rows.shape[1], dtype=torch.float64, requires_grad=True)
    views = gate([x])
    gate.set_losses({task: torch.tensor(1.0 + k) for k, task in enumerate(gate.tasks)})
    torch.stack([views[task][0] @ row for task, row in zip(gate.tasks, rows, strict=True)]).sum().backward()
    assert x.grad is not None
    return x.grad


def names(tasks: int) -> list[str]:
    return [f"t{k}" for k in range(tasks)]


def weights_of(weighting: Weighting, gramian: Tensor) -> Tensor:
    return weighting(gramian, GateContext.of_all(len(gramian)))


@pytest.mark.parametrize(("tasks", "seed"), CASES)
def test_nash_gives_every_task_the_same_gain_relative_to_its_weight(tasks: int, seed: int) -> None:
    products = jacobian(tasks, seed) @ jacobian(tasks, seed).T
    weights = weights_of(WEIGHTINGS["nash_mtl"](), products)
    assert torch.allclose(products @ weights, 1 / weights, atol=1e-6)


@pytest.mark.parametrize(("tasks", "seed"), CASES)
def test_fairgrad_equals_the_published_weighting(tasks: int, seed: int) -> None:
    products = jacobian(tasks, seed) @ jacobian(tasks, seed).T
    weights = weights_of(WEIGHTINGS["fairgrad"](alpha=2.0), products)
    assert torch.allclose(products @ weights, weights**-0.5, atol=1e-6)
    assert torch.allclose(weights, FairGradWeighting(2.0)(products), atol=1e-6)


@pytest.mark.parametrize(("tasks", "seed"), CASES)
def test_cagrad_helps_the_worst_task_most_within_its_ball(tasks: int, seed: int) -> None:
    """The primal problem of the paper, solved by a general method: max over |d - g0| <= c |g0| of min_k g_k . d."""
    rows, c = jacobian(tasks, seed), 0.4
    arrived = through(Gate(names(tasks), WEIGHTINGS["cagrad"](c=c)), rows).numpy() * (1 + c) / tasks
    matrix, mean = rows.numpy(), rows.mean(0).numpy()
    radius = c * np.linalg.norm(mean)
    assert np.linalg.norm(arrived - mean) == pytest.approx(radius, abs=1e-6)
    limits = [
        {"type": "ineq", "fun": lambda v: matrix @ v[:-1] - v[-1]},
        {"type": "ineq", "fun": lambda v: radius**2 - ((v[:-1] - mean) ** 2).sum()},
    ]
    start = np.append(mean, (matrix @ mean).min())
    best = minimize(
        lambda v: -v[-1], start, constraints=limits, method="SLSQP", options={"ftol": 1e-14, "maxiter": 500}
    )
    assert (matrix @ arrived).min() == pytest.approx(-best.fun, abs=1e-6)


@pytest.mark.parametrize(("tasks", "seed"), CASES)
def test_sdmgrad_carries_its_weights_over_as_the_published_weighting_does(tasks: int, seed: int) -> None:
    ours, theirs = WEIGHTINGS["sdmgrad"](), SDMGradWeighting()
    for step in range(3):
        products = jacobian(tasks, seed + step) @ jacobian(tasks, seed + step).T
        assert torch.allclose(weights_of(ours, products), theirs(products) * tasks, atol=1e-6)


@pytest.mark.parametrize(("tasks", "seed"), CASES)
def test_the_balancer_gives_every_task_its_fraction(tasks: int, seed: int) -> None:
    """EnCodec's equation: the sum of g_k / |g_k| times its weight, here scaled by the mean norm."""
    rows, preference = jacobian(tasks, seed), torch.arange(1.0, tasks + 1, dtype=torch.float64)
    preference /= preference.mean()
    gate = Gate(
        names(tasks),
        WEIGHTINGS["balancer"](),
        preference=dict(zip(names(tasks), preference.tolist(), strict=True)),
    )
    norms = rows.norm(dim=1)
    expected = (preference[:, None] * rows / norms[:, None]).sum(0) * norms.mean()
    assert torch.allclose(through(gate, rows), expected, atol=1e-9)


@pytest.mark.parametrize(("name", "published"), [("upgrad", UPGrad), ("aligned_mtl", AlignedMTL)])
def test_a_method_with_a_preference_of_its_own_gets_ours(name: str, published: type) -> None:
    rows, preference = jacobian(3, 0), torch.tensor([2.0, 0.5, 0.5], dtype=torch.float64)
    gate = Gate(names(3), WEIGHTINGS[name](), preference={"t0": 2.0, "t1": 0.5, "t2": 0.5})
    assert torch.allclose(through(gate, rows), published(preference)(rows), atol=1e-6)


@pytest.mark.parametrize("name", list(WEIGHTINGS))
def test_a_preferred_task_gets_more_of_orthogonal_gradients(name: str) -> None:
    gate = Gate(names(3), WEIGHTINGS[name](), preference={"t1": 4.0})
    through(gate, torch.eye(3, dtype=torch.float64))
    assert gate.last is not None
    weights = gate.last[1].tolist()
    assert weights[1] > weights[0] or name == "sdmgrad"  # its preference is a direction, not a factor


@pytest.mark.parametrize("name", list(WEIGHTINGS))
def test_restored_state_continues_bit_for_bit(name: str) -> None:
    """Also if a task is missing from some steps."""
    steps = [jacobian(3, seed) for seed in range(6)]
    steps[1][2] = 0

    def fresh() -> Gate:
        return Gate(names(3), WEIGHTINGS[name](), images=16, warmup=64, average=50)

    whole, first, second = fresh(), fresh(), fresh()
    expected = [through(whole, rows) for rows in steps]
    for rows in steps[:3]:
        through(first, rows)
    second.load(first.state())
    assert all(torch.equal(through(second, rows), end) for rows, end in zip(steps[3:], expected[3:], strict=True))


def test_weights_move_from_equal_to_the_weightings_in_the_warm_up() -> None:
    gate = Gate(names(2), lambda gramian: torch.tensor([3.0, 5.0]), images=10, warmup=20)
    seen = []
    for _ in range(3):
        through(gate, torch.eye(2, dtype=torch.float64))
        assert gate.last is not None
        seen.append(gate.last[1].tolist())
    assert seen == [[1, 1], [2, 3], [3, 5]]


def test_the_averaged_gramian_is_the_weighted_mean_of_those_seen() -> None:
    seen = []
    gate = Gate(names(2), lambda gramian: seen.append(gramian) or torch.ones(2), images=10, average=10)  # type: ignore[func-returns-value]
    a, b = jacobian(2, 0), jacobian(2, 1)
    through(gate, a)
    through(gate, b)
    mean = (a @ a.T + 2 * b @ b.T) / 3  # half-life of one step
    assert torch.allclose(seen[1], mean / mean.diagonal().mean(), atol=1e-12)


def test_a_group_is_arbitrated_as_one() -> None:
    rows = jacobian(3, 0)
    x = torch.zeros(9, dtype=torch.float64, requires_grad=True)
    gate = Gate(names(3), WEIGHTINGS["upgrad"](), groups={"pair": ["t0", "t2"]})
    views = gate([x])
    sum(views[f"t{k}"][0] @ rows[k] for k in range(3)).backward()  # type: ignore[union-attr]
    assert gate.tasks == ["pair", "t1"]
    assert x.grad is not None
    assert torch.allclose(x.grad, UPGrad()(torch.stack([rows[0] + rows[2], rows[1]])) * 2, atol=1e-6)


def test_a_loss_scale_is_divided_out() -> None:
    plain, scaled = Gate(names(2), WEIGHTINGS["upgrad"]()), Gate(names(2), WEIGHTINGS["upgrad"]())
    scaled.loss_scale = torch.tensor(2.0**16)
    rows = jacobian(2, 0)
    assert torch.allclose(through(scaled, rows * 2**16), through(plain, rows) * 2**16)
    assert scaled.report() == pytest.approx(plain.report(), abs=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_task_whose_gradient_is_not_finite_is_named_and_leaves_the_state_unchanged(bad: float) -> None:
    gate, rows = Gate(names(3), WEIGHTINGS["gradvac"](), average=10), jacobian(3, 0)
    through(gate, rows)
    before = gate.state()
    assert not torch.isfinite(through(gate, torch.cat([rows[:2], torch.full((1, 9), bad)]))).any()
    assert gate.statistics.nonfinite() == ["t2"]
    assert all(torch.equal(before[name], tensor) for name, tensor in gate.state().items())
    assert gate.report()["nonfinite_t2"] == 1


# Without IMTL-G: its weights may be negative, so that it may step beyond the front where gradients are opposite
# (fraction -0.09 here).
STATIONARY = ("mgda", "upgrad", "cagrad", "nash_mtl", "fairgrad", "aligned_mtl", "pcgrad", "equal")


@pytest.mark.parametrize("name", STATIONARY)
def test_a_convex_problem_ends_on_its_pareto_front(name: str) -> None:
    """Losses |x - a|^2 and 4 |x - b|^2: the front is the segment from a to b.

    The length of a step is bounded by its rate: at the front, where gradients are opposite, FairGrad's weights grow
    without bound, to a value that depends on the CPU's rounding.
    """
    a, b = torch.tensor([1.0, 0.0]).double(), torch.tensor([-1.0, 0.5]).double()
    gate, x = Gate(names(2), WEIGHTINGS[name]()), torch.tensor([0.5, 2.0]).double()
    for step in range(600):
        gradient = through_losses(gate, x, a, b)
        x = x - 0.04 / (1 + step / 60) * gradient / max(1.0, float(gradient.norm()))
    fraction = float((x - b) @ (a - b) / (a - b).square().sum())
    assert (b + fraction * (a - b) - x).norm() < 0.02
    assert -0.02 <= fraction <= 1.02
    if name == "equal":
        assert fraction == pytest.approx(0.2, abs=0.01)  # the minimum of the sum


def test_imtl_g_makes_equal_steps_along_every_gradient() -> None:
    """Liu et al. 2021, eq. 2: the update's projections on all unit gradients are equal."""
    for seed in range(4):
        rows = jacobian(3, seed)
        update = through(Gate(names(3), WEIGHTINGS["imtl_g"]()), rows)
        projections = rows @ update / rows.norm(dim=1)
        assert torch.allclose(projections, projections.mean().expand(3), atol=1e-6)


def through_losses(gate: Gate, at: Tensor, a: Tensor, b: Tensor) -> Tensor:
    x = at.clone().requires_grad_(True)
    first, second = gate([x]).values()
    ((first[0] - a).square().sum() + 4 * (second[0] - b).square().sum()).backward()
    assert x.grad is not None
    return x.grad
