"""Self-attention in both networks, and filtered downsampling: what they compute, and that they are options."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import toy
from torch import nn

from mtgen.errors import ConfigError
from mtgen.models.model import build
from mtgen.networks.attention import CrossAttention, SelfAttention, start_as_identity
from mtgen.networks.blocks import Down, activate, blur, initialize
from mtgen.networks.pyramid import levels_of_sides
from mtgen.schema import Canvas, Condition

PHOTOGRAPHS = {
    "generator__self_attention": [4, 8],
    "discriminator__self_attention": [8],
    "discriminator__downsampling": "filtered",
}


def attention(channels: int = 64) -> SelfAttention:
    torch.manual_seed(0)
    made = SelfAttention(channels)
    nn.init.normal_(made.attention.out.weight)
    return made


def test_every_pixel_attends_to_all_by_the_cosine_of_query_and_key() -> None:
    made, x = attention(), torch.randn(2, 64, 3, 5)
    own, pixels = made.attention, activate(x).flatten(2).transpose(1, 2)
    query, key, value = (layer(pixels).unflatten(2, (2, 32)) for layer in (own.query, own.key, own.value))
    cosine = torch.einsum("bqhd,bkhd->bhqk", F.normalize(query, dim=-1), F.normalize(key, dim=-1))
    weights = torch.softmax(math.sqrt(32) * cosine, dim=-1)
    expected = own.out(torch.einsum("bhqk,bkhd->bqhd", weights, value).flatten(2)).transpose(1, 2).unflatten(2, (3, 5))
    torch.testing.assert_close(made(x), x + expected)


def test_features_that_are_large_or_zero_do_not_spoil_attention() -> None:
    made = attention()
    for bias in (made.attention.query.bias, made.attention.value.bias, made.attention.out.bias):
        nn.init.zeros_(bias)
    x = torch.randn(1, 64, 4, 4)
    torch.testing.assert_close(made(1e4 * x) / 1e4, made(1e-2 * x) / 1e-2, rtol=1e-3, atol=1e-3)
    zero = torch.zeros(1, 64, 4, 4, dtype=torch.float16, requires_grad=True)
    made.half()(zero).sum().backward()
    assert zero.grad is not None and bool(zero.grad.isfinite().all())


def test_attention_of_feature_maps_starts_as_the_identity() -> None:
    network = nn.ModuleList([SelfAttention(32), CrossAttention(32, 8)])
    initialize(network)
    start_as_identity(network)
    x, tokens = torch.randn(2, 32, 4, 4), torch.randn(2, 3, 8)
    assert torch.equal(network[0](x), x)
    assert torch.equal(network[1](x, tokens, torch.ones(2, 3, dtype=torch.bool)), x)


def test_filtered_downsampling_is_a_convolution_with_1331_and_edges_continue() -> None:
    x, down = torch.randn(2, 3, 8, 6), Down(3, 4, filtered=True)
    initialize(down)
    kernel = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = (kernel[:, None] * kernel).expand(3, 1, 4, 4)
    filtered = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, stride=2, groups=3)
    torch.testing.assert_close(down(x), down.project(filtered))
    torch.testing.assert_close(blur(torch.full((1, 1, 4, 4), 3.0)), torch.full((1, 1, 4, 4), 3.0))


def test_filtered_downsampling_depends_less_on_the_phase_of_a_fine_texture() -> None:
    texture = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(4).expand(1, 1, 16, 16)
    inner = (slice(None), slice(None), slice(None), slice(2, -2))
    for phase, of_box, of_filtered in ((0, 1.0, 0.5), (1, 0.0, 0.0)):
        x = texture.roll(phase, -1)
        assert float(F.avg_pool2d(x, 2)[inner].abs().max()) == of_box
        assert float(F.avg_pool2d(blur(x), 2)[inner].abs().max()) == of_filtered


def test_the_shorter_side_chooses_the_levels() -> None:
    assert levels_of_sides([16, 32], (4, 6), 5) == [2, 3]
    assert levels_of_sides([], (4, 4), 5) == []


def test_networks_are_as_before_unless_the_options_are_on() -> None:
    plain, more = (build(toy.everything(**changes), toy.CARD) for changes in ({}, PHOTOGRAPHS))
    names, more_names = (
        {name for network in (made.generator, made.side) for name, _ in network.named_parameters()}
        for made in (plain, more)
    )
    assert names < more_names
    assert {name.rpartition(".attention.")[0] for name in more_names - names} == {
        "climb.attention.0",
        "climb.attention.1",
        "discriminator.descent.attention.1",
    }
    image = torch.randn(2, 1, 8, 8)
    condition = Condition(torch.randn(2, 8))
    assert more.generator(torch.randn(2, 4), condition).image.shape == (2, 1, 8, 8)
    features = [made.side.discriminator.trunk(Canvas(image)) for made in (plain, more)]
    assert [level.shape for level in features[0]] == [level.shape for level in features[1]]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_train_every_parameter_of_attention(precision: str) -> None:
    networks, d_step, g_step = toy.steps(toy.everything(precision=precision, **PHOTOGRAPHS))
    for network in (networks.generator, networks.side):
        for parameter in network.parameters():  # what starts at zero blocks gradients
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    for step, network, other in (
        (d_step, networks.side, networks.generator),
        (g_step, networks.generator, networks.side),
    ):
        step(toy.batch(0, 16), (other,))[0].backward()
        own = [parameter for name, parameter in network.named_parameters() if ".attention." in name]
        assert own and all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in own)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"generator__self_attention": [16]},
            "generator.self_attention=[16]: no level's shorter side has 16 pixels; possible: 4, 8",
        ),
        (
            {"discriminator__self_attention": [8], "tasks__generation__penalty": "exact"},
            "discriminator.self_attention=[8]: torch's attention has no second derivative",
        ),
    ],
)
def test_what_attention_cannot_do_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        toy.config(**changes)
    assert str(error.value).startswith(message)
