"""The cost of a configuration, compared with calculations by hand and with real networks."""

from pathlib import Path

import pytest
import torch
from helpers import toy
from torch import nn

from mtgen.config import load
from mtgen.models.model import build
from mtgen.networks.blocks import Conv2d
from mtgen.preflight.cost import cost, flops


def test_operations_of_a_convolution_and_a_linear_layer() -> None:
    with torch.device("meta"):
        convolution, linear = Conv2d(3, 5, 3, padding=1), nn.Linear(7, 11)
        image, vector = torch.empty(2, 3, 8, 6), torch.empty(2, 7)
    assert flops(lambda: convolution(image)) == 2 * 2 * (8 * 6) * (3 * 3 * 3) * 5
    assert flops(lambda: linear(vector)) == 2 * 2 * 7 * 11


def test_backward_counts_twice_the_forward_where_inputs_and_weights_have_gradients() -> None:
    with torch.device("meta"):
        linear, vector = nn.Linear(7, 11), torch.empty(2, 7, requires_grad=True)
    assert flops(lambda: linear(vector).sum().backward()) == 3 * 2 * 2 * 7 * 11


def test_parameters_are_those_of_real_networks() -> None:
    settings = toy.config()
    built = build(settings, toy.CARD)
    found = cost(settings, toy.CARD)
    assert found.total == sum(p.numel() for network in (built.generator, built.side) for p in network.parameters())
    assert found.generator == sum(p.numel() for p in built.generator.parameters())
    assert found.parameters["head: classification"] == sum(
        p.numel() for p in built.side.discriminator.heads["classification"].parameters()
    )


def test_a_run_without_generation_costs_less_and_zero_shards_its_state() -> None:
    whole, reading = cost(toy.config(), toy.CARD), cost(toy.config(tasks={"classification": {}}), toy.CARD)
    assert reading.step < whole.step
    assert whole.state_bytes(0, 4) == 20 * whole.total
    assert whole.state_bytes(1, 4) == 14 * whole.total
    assert whole.state_bytes(2, 4) == 11 * whole.total
    assert whole.traffic(1) == 0


def test_an_exact_penalty_costs_more_than_a_difference() -> None:
    finite, exact = (
        cost(toy.config(tasks__generation__penalty=kind, tasks__generation__penalty_every=1), toy.CARD)
        for kind in ("finite", "exact")
    )
    assert exact.step > 1.2 * finite.step
    assert exact.total == finite.total


def test_half_precision_keeps_fewer_bytes_and_launches_its_casts() -> None:
    whole, half = (cost(toy.config(precision=precision), toy.CARD) for precision in ("fp32", "bf16"))
    assert 0.5 * whole.activations < half.activations < whole.activations
    assert half.kernels > 1.1 * whole.kernels
    assert (half.total, half.step, half.sampling) == (whole.total, whole.step, whole.sampling)


def test_attention_keeps_no_matrix_of_all_pairs_of_pixels() -> None:
    plain = {"resolution": 32, "generator__widths": [8] * 4, "discriminator__widths": [8] * 4}
    without, attentive = (cost(toy.config(**plain, generator__self_attention=sides), toy.CARD) for sides in ([], [32]))
    assert attentive.step > without.step
    assert 0 < attentive.activations - without.activations < 4 * 1024 * 1024


STATED = sorted(
    path for path in (Path(__file__).resolve().parents[2] / "configs").glob("*.yaml") if "GFLOPs" in path.read_text()
)


@pytest.mark.parametrize("path", STATED, ids=lambda path: path.stem)
def test_the_head_comment_of_a_configuration_has_its_cost(path: Path) -> None:
    card = toy.CARD.model_copy(
        update={"classes": [str(n) for n in range(80)], "mask_classes": [str(n) for n in range(81)]}
    )
    found = cost(load(path, ["device=cpu"]), card)
    assert f"{found.total / 1e6:.2f}M parameters, {found.step / 1e9:.2f} GFLOPs per image and step" in path.read_text()


def test_the_configurations_for_gpus_have_such_a_comment() -> None:
    assert {"coco-64", "coco-128", "coco-256", "coco-256x384", "coco-512", "ffhq-256"} <= {path.stem for path in STATED}
