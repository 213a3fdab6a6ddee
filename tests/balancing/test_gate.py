"""The gradient gate: what it passes on, compared with the same computed by hand, and what it reports."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import toy
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchjd.aggregation import IMTLG, MGDA, Aggregator, AlignedMTL, GradVac, PCGrad, Sum, UPGrad

from mtgen.balancing.gate import Gate
from mtgen.balancing.gramian import gramian
from mtgen.balancing.weighting import GateContext, Weighting
from mtgen.config import WEIGHTINGS

SHAPES = [(4, 3, 2, 2), (4, 5), (2, 3)]
Gradients = list[list[Tensor | None]]  # by task, then by tensor; None where a task does not use a tensor


def constant(weights: list[float]) -> Any:
    """A weighting that returns these weights for any Gramian."""
    return lambda gramian: torch.tensor(weights, dtype=gramian.dtype)


def shared_tensors(parts: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=random, dtype=torch.float64, requires_grad=True) for shape in SHAPES[:parts]]


def gradients(tasks: int, parts: int, seed: int = 0, used: list[list[bool]] | None = None) -> Gradients:
    random = torch.Generator().manual_seed(seed)
    made = [
        [torch.randn(shape, generator=random, dtype=torch.float64) for shape in SHAPES[:parts]] for _ in range(tasks)
    ]
    return [[g if used is None or used[k][p] else None for p, g in enumerate(row)] for k, row in enumerate(made)]


def through(gate: Gate, shared: list[Tensor], wanted: Gradients) -> list[Tensor | None]:
    """The shared tensors' gradients when the gradient of task k's view of tensor p is `wanted[k][p]`."""
    views = gate(shared)
    loss = torch.zeros((), dtype=torch.float64)
    for name, row in zip(gate.tasks, wanted, strict=True):
        for view, gradient in zip(views[name], row, strict=True):
            if gradient is not None:
                loss = loss + (view * gradient).sum()
    loss.backward()
    return [tensor.grad for tensor in shared]


def jacobian(wanted: Gradients) -> Tensor:
    """`[K,N]`: one row per task, its whole gradient, 0 where it does not use a tensor."""
    rows = [
        [torch.zeros(s, dtype=torch.float64) if g is None else g for g, s in zip(row, SHAPES, strict=False)]
        for row in wanted
    ]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


@pytest.mark.parametrize("tasks", [2, 3, 4])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_the_backward_passes_on_the_weighted_sum(tasks: int, parts: int) -> None:
    weights = [0.5, -2.0, 3.0, 0.25][:tasks]
    wanted = gradients(tasks, parts)
    arrived = through(Gate([f"t{k}" for k in range(tasks)], constant(weights)), shared_tensors(parts), wanted)
    for p, gradient in enumerate(arrived):
        assert gradient is not None
        by_hand = sum(w * row[p] for w, row in zip(weights, wanted, strict=True))  # type: ignore[operator]
        assert torch.allclose(gradient, by_hand, rtol=0, atol=1e-12)  # type: ignore[arg-type]


@given(
    st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=2, max_size=4).filter(
        lambda used: any(map(any, used))
    )
)
def test_tasks_may_use_some_tensors_or_none(used: list[list[bool]]) -> None:
    wanted = gradients(len(used), 3, used=used)
    gate = Gate([f"t{k}" for k in range(len(used))], constant([0.5, 2.0, 3.0, 4.0][: sum(map(any, used))]))
    arrived = through(gate, shared_tensors(3), wanted)
    weights = iter([0.5, 2.0, 3.0, 4.0])
    by_task = [
        next(weights) if any(row) else 0.0 for row in used
    ]  # a task without a gradient has no row in the Gramian
    expected = torch.tensor(by_task, dtype=torch.float64) @ jacobian(wanted)
    found = torch.cat(
        [torch.zeros(s).flatten() if g is None else g.flatten() for g, s in zip(arrived, SHAPES, strict=True)]
    )
    assert torch.allclose(found.double(), expected, rtol=0, atol=1e-12)
    assert [g is None for g in arrived] == [not any(row[p] for row in used) for p in range(3)]


@given(st.integers(2, 4), st.integers(1, 3), st.integers(0, 10_000))
def test_the_gramian_is_that_of_the_whole_jacobian(tasks: int, parts: int, seed: int) -> None:
    wanted = gradients(tasks, parts, seed)
    rows = jacobian(wanted)
    found = gramian([[wanted[k][p] for k in range(tasks)] for p in range(parts)])
    assert torch.allclose(found, rows @ rows.T, rtol=0, atol=1e-10)
    assert torch.equal(found, found.T)


LOSSES = ("uncertainty", "dwa", "famo", "gradnorm")
AGGREGATORS: dict[str, tuple[Aggregator, bool]] = {  # and whether it averages, where mtgen's scale is a sum
    "equal": (Sum(), False),
    "upgrad": (UPGrad(), True),
    "mgda": (MGDA(), True),
    "pcgrad": (PCGrad(), False),
    "gradvac": (GradVac(0.01), False),
    "aligned_mtl": (AlignedMTL(), True),
    "imtl_g": (IMTLG(), True),
}
ELSEWHERE = {
    "balancer",
    "cagrad",
    "nash_mtl",
    "fairgrad",
    "sdmgrad",
}  # compared with their papers' equations in test_weightings.py


def weighting(name: str) -> Weighting:
    made: Weighting = WEIGHTINGS[name]()
    return made


def gate_of(name: str, tasks: list[str]) -> Gate:
    """A gate with a new weighting; those that read losses get a loss of 1 for every task."""
    gate = Gate(tasks, weighting(name))
    gate.set_losses({task: torch.tensor(1.0) for task in tasks})
    return gate


def weights_of(made: Weighting, gramian: Tensor) -> Tensor:
    losses = torch.ones(len(gramian), dtype=torch.float64)
    return made(gramian, GateContext.of_all(len(gramian), losses=losses))


def test_every_weighting_is_compared_with_its_aggregator_or_its_equations() -> None:
    assert {*AGGREGATORS, *LOSSES, *ELSEWHERE} == set(WEIGHTINGS)


@pytest.mark.parametrize("seed", range(4))
def test_pcgrad_projects_in_one_of_the_random_orders_of_the_published_aggregator(seed: int) -> None:
    rows = jacobian(gradients(3, 1, seed))
    rows[2] = -rows[0] - 0.5 * rows[1]
    weights, published = weights_of(weighting("pcgrad"), rows @ rows.T), []
    for number in range(30):
        torch.manual_seed(number)
        published.append(PCGrad()(rows))
    assert any(torch.allclose(weights @ rows, other, rtol=0, atol=1e-9) for other in published)


@pytest.mark.parametrize(
    ("name", "tasks", "seed"),
    [
        (name, tasks, seed)
        for name in AGGREGATORS
        for tasks, seed in ((2, 0), (2, 7), (3, 1), (4, 2))
        if tasks == 2 or name not in ("pcgrad", "gradvac")  # with more tasks their order is random
    ],
)
def test_a_gate_equals_the_published_aggregator_on_the_jacobian(name: str, tasks: int, seed: int) -> None:
    wanted = gradients(tasks, 3, seed)
    wanted[0] = [g * -0.8 + 0.3 * h for g, h in zip(wanted[1], wanted[0], strict=True)]  # type: ignore[operator]  # a conflict
    aggregator, averages = AGGREGATORS[name]
    if name == "gradvac":
        aggregator = GradVac(0.01)  # a new one: it has state
    arrived = through(gate_of(name, [f"t{k}" for k in range(tasks)]), shared_tensors(3), wanted)
    expected = aggregator(jacobian(wanted)) * (tasks if averages else 1)
    found = torch.cat([g.flatten() for g in arrived if g is not None])
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", list(WEIGHTINGS))
@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_equal_orthogonal_gradients_have_weight_one(name: str, tasks: int) -> None:
    assert torch.allclose(
        weights_of(weighting(name), torch.eye(tasks, dtype=torch.float64)), torch.ones(tasks).double(), atol=1e-5
    )


@pytest.mark.parametrize("name", list(WEIGHTINGS))
def test_weights_are_a_function_of_the_gramian_alone(name: str) -> None:
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    products = rows @ rows.T
    products /= products.diagonal().mean()
    torch.manual_seed(1)
    first = weights_of(weighting(name), products)
    rounded = products * (1 + 1e-9)  # one worker and two differ by as little
    assert torch.allclose(weights_of(weighting(name), rounded), first, atol=1e-4)
    state = torch.manual_seed(2).get_state()
    assert torch.equal(weights_of(weighting(name), products), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_task_without_a_gradient_takes_no_part() -> None:
    seen = []

    def weighting(gramian: Tensor) -> Tensor:
        seen.append(gramian)
        return torch.full_like(gramian[0], 2.0)

    wanted = gradients(3, 2, used=[[True, True], [False, False], [True, False]])
    wanted[2] = [torch.zeros(SHAPES[0], dtype=torch.float64), None]  # a zero gradient counts as none
    gate = Gate(["a", "b", "c"], weighting)
    arrived = through(gate, shared_tensors(2), wanted)
    assert [gramian.shape for gramian in seen] == [(1, 1)]
    assert arrived[0] is not None
    assert torch.equal(arrived[0], 2 * wanted[0][0])  # type: ignore[operator]
    assert gate.last is not None
    assert gate.last[1].tolist() == [2, 0, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200])
@pytest.mark.parametrize("name", list(WEIGHTINGS))
def test_a_gramian_that_is_not_finite_leaves_plain_weights(name: str, bad: float) -> None:
    wanted = gradients(2, 1)
    wanted[1] = [torch.full(SHAPES[0], bad, dtype=torch.float64)]
    gate = gate_of(name, ["a", "b"])
    (arrived,) = through(gate, shared_tensors(1), wanted)
    assert arrived is not None
    assert torch.equal(arrived.nan_to_num(), (wanted[0][0] + wanted[1][0]).nan_to_num())  # type: ignore[operator]
    assert gate.last is not None
    assert gate.last[1].tolist() == [1, 1]


@pytest.mark.parametrize("name", [name for name in WEIGHTINGS if not getattr(WEIGHTINGS[name], "reads_losses", False)])
@pytest.mark.parametrize(("kind", "scale"), [(torch.bfloat16, None), (torch.float16, None), (torch.float16, 2.0**12)])
def test_half_precision_is_summed_in_float32_and_its_loss_scale_is_divided_out(
    name: str, kind: torch.dtype, scale: float | None
) -> None:
    """Sums of squares exceed float16's range (65,504); Gramian and weights are those of the same numbers in float64."""
    random, factor = torch.Generator().manual_seed(3), scale or 40.0
    made = [torch.randn(8, 5, 6, 6, generator=random).mul(3.0 / (k + 1)).clamp(-15, 15).to(kind) for k in range(3)]
    made[1] = made[1] - made[0] / 4  # not all orthogonal
    scaled = [(g * factor).to(kind) for g in made]
    half, gate = torch.zeros(8, 5, 6, 6, dtype=kind, requires_grad=True), gate_of(name, ["a", "b", "c"])
    gate.loss_scale = None if scale is None else torch.tensor(scale)
    views = gate([half])
    torch.autograd.backward([views[k][0] for k in gate.tasks], scaled)
    rows = torch.stack([g.double().flatten() for g in scaled]) / (scale or 1.0)
    assert float((rows * (scale or 1.0)).square().sum()) > 65_504
    assert gate.last is not None and gate.last[0].dtype == torch.float32
    assert torch.allclose(
        gate.last[0].double(), rows @ rows.T, rtol=1e-5, atol=1e-5 * float((rows @ rows.T).abs().max())
    )
    exact = gate_of(name, ["a", "b", "c"])
    (arrived,) = through(
        exact, [torch.zeros(8, 5, 6, 6, dtype=torch.float64, requires_grad=True)], [[g.double()] for g in scaled]
    )
    assert exact.last is not None and arrived is not None and half.grad is not None
    assert torch.allclose(gate.last[1].double(), exact.last[1], atol=1e-4)
    assert torch.allclose(
        half.grad.double(), arrived, rtol=0, atol=4 * torch.finfo(kind).eps * float(arrived.abs().max())
    )


def test_gates_nest() -> None:
    """An inner gate's sum is one task of the outer one."""
    wanted, (x,) = gradients(3, 1), shared_tensors(1)
    inner, outer = Gate(["a", "b"], constant([2.0, 3.0])), Gate(["both", "c"], constant([5.0, 7.0]))
    views = outer([x])
    feature = views["both"][0] * 2
    a, b = inner([feature]).values()
    loss = (a[0] * wanted[0][0]).sum() + (b[0] * wanted[1][0]).sum() + (views["c"][0] * wanted[2][0]).sum()  # type: ignore[operator]
    loss.backward()
    bundle = 2 * (2 * wanted[0][0] + 3 * wanted[1][0])  # type: ignore[operator]
    assert x.grad is not None
    assert torch.allclose(x.grad, 5 * bundle + 7 * wanted[2][0], rtol=0, atol=1e-12)  # type: ignore[operator]
    assert outer.last is not None
    assert outer.last[0][0, 0] == pytest.approx(bundle.square().sum().item())


def test_equal_weights_pass_on_the_plain_sum_bit_for_bit_without_reading_the_gramian() -> None:
    gate = Gate(["a", "b"], WEIGHTINGS["equal"]())
    assert gate.is_plain_sum
    wanted = gradients(2, 1)
    (arrived,) = through(gate, shared_tensors(1), wanted)
    (plain,) = through(Gate(["a", "b"], None), shared_tensors(1), wanted)
    assert arrived is not None
    assert plain is not None
    assert torch.equal(arrived, plain)
    assert gate.last is not None  # the statistics are there all the same
    rows = jacobian(wanted)
    assert torch.allclose(gate.last[0], rows @ rows.T)


@pytest.mark.parametrize(
    ("gate", "needs"),
    [
        (Gate(["a", "b"], None), True),
        (Gate(["a"], constant([2.0])), True),
        (Gate(["a", "b"], constant([2.0, 2.0])), False),
    ],
)
def test_without_anything_to_arbitrate_the_tensors_themselves_are_handed_out(gate: Gate, needs: bool) -> None:
    shared = [torch.ones(3, requires_grad=needs)]
    assert all(views[0] is shared[0] for views in gate(shared).values())
    assert gate.report() == {}


def test_views_hold_the_shared_values() -> None:
    shared = shared_tensors(3)
    for views in Gate(["a", "b"], constant([1.0, 1.0]))(shared).values():
        assert all(torch.equal(view, tensor) for view, tensor in zip(views, shared, strict=True))


def test_the_report_gives_norms_weights_and_cosines_of_the_tasks_that_had_a_gradient() -> None:
    wanted = gradients(3, 3, used=[[True] * 3, [False] * 3, [True] * 3])
    gate = Gate(["a", "b", "c"], constant([0.5, 2.0]))
    through(gate, shared_tensors(3), wanted)
    a, _, c = jacobian(wanted)
    cosine = a @ c / a.norm() / c.norm()
    expected = {
        "norm_a": a.norm(),
        "norm_c": c.norm(),
        "weight_a": 0.5,
        "weight_c": 2.0,
        "cosine_a_c": cosine,
        "conflict_a_c": cosine < 0,
    }
    assert gate.report() == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-9)
    assert gate.report() == {}  # it starts again from zero


ROWS = 12


def arbitrated(name: str, parts: list[tuple[int, int]]) -> dict[str, Tensor]:
    """The weights and gradients on this worker, which has its own rows of the shared tensor."""
    begin, end = parts[dist.get_rank() if dist.is_initialized() else 0]
    random = torch.Generator().manual_seed(5)
    x = torch.randn(ROWS, 6, generator=random, dtype=torch.float64)[begin:end].requires_grad_(True)
    wanted = torch.randn(3, ROWS, 6, generator=random, dtype=torch.float64)
    wanted[2] = 0.2 * wanted[2] - wanted[0]
    gate = Gate(["a", "b", "c"], weighting(name))
    part = (end - begin) / ROWS * (2 if len(parts) > 1 else 1)  # this worker's part of the mean over the global batch
    gate.set_losses({task: torch.tensor(part * loss) for task, loss in zip("abc", (0.5, 1.0, 2.0), strict=True)})
    torch.manual_seed(begin)  # workers' random states need not agree
    views = gate([x])
    sum((views[task][0] * wanted[k, begin:end]).sum() for k, task in enumerate("abc")).backward()  # type: ignore[union-attr]
    assert gate.last is not None
    assert x.grad is not None
    return {"gramian": gate.last[0], "weights": gate.last[1], "gradient": x.grad}


@pytest.mark.e2e
def test_two_workers_with_unequal_parts_choose_the_weights_of_one_with_all(tmp_path: Path) -> None:
    found = toy.spawn(2, every_weighting, tmp_path, [(0, 4), (4, ROWS)])
    for name in WEIGHTINGS:
        alone = arbitrated(name, [(0, ROWS)])
        for worker in found:
            assert torch.allclose(worker[name]["gramian"], alone["gramian"], rtol=1e-12)
            assert torch.allclose(worker[name]["weights"], alone["weights"], atol=1e-6 if name == "mgda" else 1e-9)
        both = torch.cat([worker[name]["gradient"] for worker in found])
        assert torch.allclose(both, alone["gradient"], atol=1e-5)
        assert torch.equal(found[0][name]["weights"], found[1][name]["weights"])


def every_weighting(parts: list[tuple[int, int]]) -> dict[str, dict[str, Tensor]]:
    return {name: arbitrated(name, parts) for name in WEIGHTINGS}


def with_one_missing(parts: list[tuple[int, int]]) -> dict[str, Tensor]:
    """As `arbitrated` with UPGrad, but task "c" has a gradient in the first rows only.

    The second worker has none, not even zeros.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    begin, end = parts[rank]
    random = torch.Generator().manual_seed(6)
    x = torch.randn(ROWS, 6, generator=random, dtype=torch.float64)[begin:end].requires_grad_(True)
    wanted = torch.randn(3, ROWS, 6, generator=random, dtype=torch.float64)
    wanted[2, 4:] = 0
    gate = Gate(["a", "b", "c"], WEIGHTINGS["upgrad"]())
    views = gate([x])
    tasks = "abc" if rank == 0 else "ab"
    sum((views[task][0] * wanted["abc".index(task), begin:end]).sum() for task in tasks).backward()  # type: ignore[union-attr]
    assert gate.last is not None and x.grad is not None
    return {"weights": gate.last[1], "gradient": x.grad}


def with_a_nan_on_the_second(parts: list[tuple[int, int]]) -> dict[str, Any]:
    """What each worker's gate reports when task "b" has a NaN in the second worker's rows only."""
    begin, end = parts[dist.get_rank()]
    x = torch.ones(end - begin, 6, dtype=torch.float64, requires_grad=True)
    gate = Gate(["a", "b", "c"], WEIGHTINGS["upgrad"]())
    views = gate([x])
    factors = {"a": 1.0, "b": float("nan") if dist.get_rank() == 1 else 2.0, "c": -0.5}
    sum((views[task][0] * factor).sum() for task, factor in factors.items()).backward()  # type: ignore[union-attr]
    return {"named": gate.statistics.nonfinite(), "weights": gate.last[1] if gate.last else None}


@pytest.mark.e2e
def test_a_task_without_a_gradient_on_one_worker_counts_with_that_of_the_other(tmp_path: Path) -> None:
    found = toy.spawn(2, with_one_missing, tmp_path, [(0, 4), (4, ROWS)])
    alone = with_one_missing([(0, ROWS)])
    assert all(torch.allclose(worker["weights"], alone["weights"], atol=1e-9) for worker in found)
    assert torch.allclose(torch.cat([worker["gradient"] for worker in found]), alone["gradient"], atol=1e-9)


@pytest.mark.e2e
def test_a_task_with_a_nan_on_one_worker_is_named_on_all(tmp_path: Path) -> None:
    found = toy.spawn(2, with_a_nan_on_the_second, tmp_path, [(0, 4), (4, ROWS)])
    assert [worker["named"] for worker in found] == [["b"], ["b"]]
    assert torch.equal(found[0]["weights"], found[1]["weights"])
