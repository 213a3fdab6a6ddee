"""Gramians of pooled gradients and of the last shared layers' weight gradients, compared with autograd."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers import toy
from torch import Tensor

from mtgen.balancing.conflicts import GateHistory, gate_histories, markdown
from mtgen.balancing.gate import Gate
from mtgen.balancing.gramian import GRAMIAN_SOURCES, InputHooks, RowSlice
from mtgen.config import WEIGHTINGS
from mtgen.networks.blocks import Conv2d
from mtgen.registry import by_path, find_path

IMAGE_ONLY = 3


def scene() -> tuple[list[Conv2d], list[Tensor], list[list[Tensor]]]:
    """Two last layers, their inputs, and the gradients of each of two tasks at each shared tensor."""
    torch.manual_seed(0)
    layers = [Conv2d(4, 5, 3, padding=1).double(), Conv2d(3, 2, 3, padding=1).double()]
    for layer in layers:
        torch.nn.init.normal_(layer.weight)
    inputs = [torch.randn(6, 4, 4, 4).double(), torch.randn(6, 3, 8, 8).double()]
    shapes = [(IMAGE_ONLY, 5, 4, 4), (IMAGE_ONLY, 2, 8, 8), (6 - IMAGE_ONLY, 5, 4, 4)]
    return layers, inputs, [[torch.randn(shape).double() for shape in shapes] for _ in range(2)]


def gramian_of(source: str) -> tuple[Tensor, list[Conv2d], list[Tensor], list[list[Tensor]]]:
    """A gate's Gramian at features that are split into image-only rows and the others, as a step splits them."""
    layers, inputs, wanted = scene()
    gate = Gate(["a", "b"], WEIGHTINGS["upgrad"](), gramian_source=source, input_hooks=InputHooks(layers))
    features = [layer(x) for layer, x in zip(layers, inputs, strict=True)]
    pieces = [level[:IMAGE_ONLY] for level in features] + [features[0][IMAGE_ONLY:]]
    views = gate(pieces, [RowSlice(0), RowSlice(1), RowSlice(0, IMAGE_ONLY)])
    loss = sum(
        (view * g).sum()
        for task, row in zip("ab", wanted, strict=True)
        for view, g in zip(views[task], row, strict=True)
    )
    loss.backward()  # type: ignore[union-attr]
    assert gate.last is not None
    return gate.last[0], layers, inputs, wanted


def test_a_layers_gramian_is_that_of_its_weight_gradients() -> None:
    found, layers, inputs, wanted = gramian_of("layer")
    rows = []
    for row in wanted:
        features = [layer(x) for layer, x in zip(layers, inputs, strict=True)]
        loss = (
            (features[0][:IMAGE_ONLY] * row[0]).sum()
            + (features[1][:IMAGE_ONLY] * row[1]).sum()
            + (features[0][IMAGE_ONLY:] * row[2]).sum()
        )
        gradients = torch.autograd.grad(loss, [layer.weight for layer in layers])
        rows.append(torch.cat([g.flatten() for g in gradients]))
    jacobian = torch.stack(rows)
    assert torch.allclose(found, jacobian @ jacobian.T, rtol=1e-10)


def test_a_pooled_gramian_sums_over_samples_and_space_of_all_slices_of_a_tensor() -> None:
    found, _, _, wanted = gramian_of("pooled")
    vectors = torch.stack([torch.cat([r[0].sum((0, 2, 3)) + r[2].sum((0, 2, 3)), r[1].sum((0, 2, 3))]) for r in wanted])
    assert torch.allclose(found, vectors @ vectors.T, rtol=1e-10)


@pytest.mark.parametrize("source", ["features", "pooled"])
def test_slices_of_one_group_are_pooled_together(source: str) -> None:
    """As a canvas is split: image and mask are channels of one output, and each task uses different rows."""
    output = torch.randn(6, 5, 4, 4, dtype=torch.float64, requires_grad=True) * 1.0
    image, mask = output.split([2, 3], dim=1)
    gate = Gate(["a", "b"], WEIGHTINGS["upgrad"](), gramian_source=source)
    slices = [RowSlice(0), RowSlice(0, 4), RowSlice(1), RowSlice(1, 4)]
    views = gate([*image.split([4, 2]), *mask.split([4, 2])], slices)
    (views["a"][0].sum() - 2 * views["b"][1].sum() + 3 * views["b"][3].sum()).backward()
    assert gate.last is not None
    a, b, c = 4 * 16, -2 * 2 * 16, 3 * 2 * 16  # per channel: two of the image, three of the mask
    expected = {
        "features": [[128, 0], [0, 256 + 9 * 96]],
        "pooled": [[2 * a * a, 2 * a * b], [2 * a * b, 2 * b * b + 3 * c * c]],
    }
    assert torch.allclose(gate.last[0], torch.tensor(expected[source], dtype=torch.float64))


def test_a_tensor_that_fits_no_layers_input_is_an_error() -> None:
    hooks = InputHooks([Conv2d(4, 5, 3, padding=1)])
    gate = Gate(["a", "b"], WEIGHTINGS["upgrad"](), gramian_source="layer", input_hooks=hooks)
    with pytest.raises(RuntimeError, match=r"balancing\.gramian_source=layer: .*\(2, 5, 4, 4\)"):
        gate([torch.zeros(2, 5, 4, 4, requires_grad=True)])


def gramian_on_this_worker(source: str, parts: list[tuple[int, int]]) -> Tensor:
    """The Gramian of two tasks at a layer; this worker has its part of the samples only."""
    begin, end = parts[dist.get_rank() if dist.is_initialized() else 0]
    layers, inputs, wanted = scene()
    gate = Gate(["a", "b"], WEIGHTINGS["upgrad"](), gramian_source=source, input_hooks=InputHooks(layers[:1]))
    views = gate([layers[0](inputs[0][begin:end])])
    each = {task: torch.cat([row[0], row[2]])[begin:end] for task, row in zip("ab", wanted, strict=True)}
    sum((views[task][0] * g).sum() for task, g in each.items()).backward()  # type: ignore[union-attr]
    assert gate.last is not None
    return gate.last[0]


def every_source(parts: list[tuple[int, int]]) -> dict[str, Tensor]:
    return {source: gramian_on_this_worker(source, parts) for source in GRAMIAN_SOURCES}


@pytest.mark.e2e
def test_two_workers_have_the_gramian_of_one_with_all_samples(tmp_path: Path) -> None:
    found, alone = toy.spawn(2, every_source, tmp_path, [(0, 2), (2, 6)]), every_source([(0, 6)])
    for source, gramian in alone.items():
        assert all(torch.allclose(worker[source], gramian, rtol=1e-10) for worker in found), source


def test_tasks_on_different_samples_conflict_when_pooled_and_never_in_their_features() -> None:
    cosines = []
    for source in ("features", "pooled"):
        x = torch.zeros(4, 3, 2, 2, requires_grad=True)
        gate = Gate(["a", "b"], WEIGHTINGS["upgrad"](), gramian_source=source)
        views = gate([x[:2], x[2:]], [RowSlice(0), RowSlice(0, 2)])
        (views["a"][0].sum() - views["b"][1].sum()).backward()
        cosines.append(gate.report()["cosine_a_b"])
    assert cosines == pytest.approx([0, -1], abs=1e-6)


def test_channels_last_gradients_are_compared_element_by_element() -> None:
    g = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    x = torch.zeros(2, 3, 4, 5, requires_grad=True)
    gate = Gate(["a", "b"], WEIGHTINGS["upgrad"]())
    views = gate([x])
    (F.relu(views["a"][0] + 1) * g.contiguous(memory_format=torch.channels_last)).sum().backward(retain_graph=True)
    x.grad = None
    ((views["a"][0] * g.contiguous(memory_format=torch.channels_last)).sum() + (views["b"][0] * g).sum()).backward()
    assert gate.last is not None
    assert gate.last[0].flatten().tolist() == pytest.approx([g.square().sum().item()] * 4, rel=1e-5)


OWN = '''
import torch

class SmallestFirst:
    """Weights inverse to the squared norms."""

    def __call__(self, gramian: torch.Tensor) -> torch.Tensor:
        weights = 1 / gramian.diagonal()
        return weights * len(weights) / weights.sum()
'''


def test_a_users_weighting_is_found_by_its_path_and_not_run_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_weighting.py").write_text(OWN)
    found = find_path("my_weighting.SmallestFirst")
    assert found == f"{tmp_path}/my_weighting.py:SmallestFirst"
    monkeypatch.chdir("/")
    gate = Gate(["a", "b"], by_path(found)())
    x = torch.zeros(2, requires_grad=True)
    views = gate([x])
    (views["a"][0][0] + 2 * views["b"][0][1]).backward()
    assert gate.last is not None
    assert gate.last[1].tolist() == pytest.approx([1.6, 0.4])


def history_of(**numbers: float) -> GateHistory:
    return gate_histories([(1000, {f"balancing_generator/{name}": value for name, value in numbers.items()})])[
        "generator"
    ]


def test_the_table_shows_how_much_one_task_slows_another() -> None:
    history = history_of(norm_a=1, norm_b=2, weight_a=1, weight_b=0.5, cosine_a_b=-0.3, conflict_a_b=0.8)
    assert history.effect("b", "a", 1) == pytest.approx(-0.3)  # weighted, both gradients have the same norm
    assert "| 1 a | 1 | 1 | 50.0 % |  | -30 (80) |" in markdown({"generator": history})
