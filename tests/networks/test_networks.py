"""Generator, discriminator and their layers: shapes, initialization, and what they do not contain."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtgen.networks.blocks import Conv2d, Down, ResidualBlock, Up, initialize
from mtgen.networks.discriminator import Discriminator
from mtgen.networks.generator import CanvasSpec, ConditionSpec, Generator
from mtgen.networks.pyramid import ConditionInjection, DownsamplePyramid, UpsamplePyramid, level_sizes
from mtgen.schema import Canvas, Condition

WIDTHS = [8, 6, 5, 4, 3]
BASE = (4, 4)


def generator(levels: int = 3, channels: int = 3, mask_classes: int = 2, blocks: int = 1) -> Generator:
    torch.manual_seed(0)
    return Generator(WIDTHS[:levels], blocks, BASE, 4, 6, CanvasSpec(channels, mask_classes), ConditionSpec(), 0.25)


def discriminator(levels: int = 3, channels: int = 3, mask_classes: int = 2, decoder: int = 5) -> Discriminator:
    torch.manual_seed(1)
    return Discriminator(
        WIDTHS[:levels], 1, decoder, CanvasSpec(channels, mask_classes), {"head": nn.Linear(WIDTHS[0] * 16, 2)}
    )


def canvas(rows: int = 4, side: int = 16, mask_classes: int = 2, shown: list[bool] | None = None) -> Canvas:
    random = torch.Generator().manual_seed(2)
    mask = torch.rand(rows, mask_classes, side, side, generator=random)
    return Canvas(torch.randn(rows, 3, side, side, generator=random), mask, torch.tensor(shown) if shown else None)


def perturbed(network: Any) -> Any:
    """The network with perturbed parameters, since some layers start at zero."""
    random = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return network


@pytest.mark.parametrize(("levels", "side"), [(1, 4), (2, 8), (3, 16), (5, 64)])
@pytest.mark.parametrize(("channels", "mask_classes", "blocks"), [(1, 0, 1), (3, 2, 2)])
def test_the_generator_gives_a_canvas_of_the_pyramids_resolution(
    levels: int, side: int, channels: int, mask_classes: int, blocks: int
) -> None:
    made = generator(levels, channels, mask_classes, blocks)(torch.randn(2, 4), Condition(torch.randn(2, 6)))
    assert made.image.shape == (2, channels, side, side)
    assert (made.mask is None) == (mask_classes == 0)
    if made.mask is not None:
        assert made.mask.shape == (2, mask_classes, side, side)
        assert torch.allclose(made.mask.sum(dim=1), torch.ones(2, side, side), atol=1e-6)


@pytest.mark.parametrize(("levels", "side"), [(1, 4), (2, 8), (3, 16), (5, 64)])
def test_the_trunk_returns_levels_from_the_lowest_and_the_decoder_the_full_resolution(levels: int, side: int) -> None:
    network = discriminator(levels)
    features = network.trunk(canvas(side=side))
    assert [tuple(level.shape) for level in features] == [
        (4, w, *s) for w, s in zip(WIDTHS, level_sizes(BASE, levels), strict=False)
    ]
    assert network.dense(features).shape == (4, 5, side, side)
    assert network.summary(features).shape == (4, WIDTHS[0] * 16)


def test_a_discriminator_without_dense_tasks_has_no_decoder_and_raises() -> None:
    network = discriminator(decoder=0)
    with pytest.raises(ValueError, match="built without a decoder"):
        network.dense(network.trunk(canvas()))


@pytest.mark.parametrize("style", [0, 3])
def test_a_residual_block_starts_as_the_identity(style: int) -> None:
    block = ResidualBlock(5, style)
    initialize(block)
    x = torch.randn(2, 5, 8, 8)
    assert torch.equal(block(x, torch.randn(2, style) if style else None), x)


def test_the_pyramids_start_as_their_resampling_alone() -> None:
    up = UpsamplePyramid([4, 4, 4], 2, 3, [ConditionInjection(4, 0, 0, 0) for _ in range(3)])
    down = DownsamplePyramid([4, 4, 4], 2)
    for network in (up, down):
        initialize(network)
    low, high = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 16, 16)
    assert torch.equal(up(low, torch.randn(2, 3), Condition(torch.randn(2, 6))), up.ups[1](up.ups[0](low)))
    half = down.downs[1](high)
    assert all(torch.equal(a, b) for a, b in zip(down(high), [down.downs[0](half), half, high], strict=True))


def test_the_latent_reaches_every_block() -> None:
    network = perturbed(generator(blocks=2))
    network(torch.randn(3, 4), Condition(torch.randn(3, 6))).image.square().sum().backward()
    styles = [module.style for module in network.modules() if isinstance(module, ResidualBlock)]
    assert len(styles) == 6
    assert all(style is not None and float(style.weight.grad.abs().sum()) > 0 for style in styles)


def test_biases_start_at_zero_and_weights_with_hes_variance() -> None:
    network = nn.Sequential(Conv2d(64, 64, 3), nn.Linear(512, 512))
    initialize(network)
    for layer, fan_in in ((network[0], 64 * 9), (network[1], 512)):
        assert isinstance(layer, Conv2d | nn.Linear)
        assert layer.bias is not None
        assert not layer.bias.any()
        assert layer.weight.detach().var().item() == pytest.approx(2 / (1 + 0.2**2) / fan_in, rel=0.05)


def test_up_interpolates_and_down_averages() -> None:
    up, down = Up(1, 1), Down(1, 1)
    for layer in (up, down):
        nn.init.ones_(layer.project.weight)
        nn.init.zeros_(layer.project.bias)
    assert torch.equal(up(torch.full((1, 1, 4, 4), 3.0)), torch.full((1, 1, 8, 8), 3.0))
    x = torch.randn(1, 1, 4, 4)
    assert torch.allclose(down(x)[0, 0, 1, 0], x[0, 0, 2:, :2].mean())


def test_a_hidden_mask_adds_nothing() -> None:
    network = perturbed(discriminator())
    with_mask = canvas(shown=[True, False, True, False])
    features, alone = network.trunk(with_mask), network.trunk(Canvas(with_mask.image))
    for level, level_alone in zip(features, alone, strict=True):
        assert torch.equal(level[[1, 3]], level_alone[[1, 3]])
        assert not torch.allclose(level[[0, 2]], level_alone[[0, 2]])


def test_a_hidden_mask_has_no_gradient_and_its_layer_always_has_one() -> None:
    network = perturbed(discriminator())
    for shown, expected in (([True, False, True, False], [True, False, True, False]), ([False] * 4, [False] * 4)):
        network.zero_grad(set_to_none=True)
        seen = canvas(shown=shown)
        assert seen.mask is not None
        seen.mask.requires_grad_(True)
        network.trunk(seen)[0].square().sum().backward()
        assert seen.mask.grad is not None
        assert [bool(row.abs().sum() > 0) for row in seen.mask.grad] == expected
        assert network.see_mask is not None
        assert network.see_mask.weight.grad is not None
        assert bool(network.see_mask.weight.grad.abs().sum() > 0) == any(shown)


@pytest.mark.parametrize("network", [generator(), discriminator()], ids=["generator", "discriminator"])
def test_networks_hold_no_buffers_and_no_normalization_layers(network: nn.Module) -> None:
    assert list(network.buffers()) == []
    assert not [m for m in network.modules() if "Norm" in type(m).__name__ or isinstance(m, nn.Dropout)]


def test_activations_are_channels_last() -> None:
    network, seen = generator(5), []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output.is_contiguous(memory_format=torch.channels_last))

    whole = [network, discriminator(5)]
    for module in (m for n in whole for m in n.modules() if isinstance(m, ResidualBlock | Up | Down)):
        module.register_forward_hook(keep)
    generated = network(torch.randn(2, 4), Condition(torch.randn(2, 6)))
    whole[1].trunk(Canvas(generated.image.contiguous()))
    assert len(seen) == 5 + 4 + 5 + 4
    assert all(seen)


def test_the_generators_last_layers_are_fp32() -> None:
    network, seen = Generator([8, 6], 1, BASE, 4, 6, CanvasSpec(3, 2, 4, 2), ConditionSpec(), 0.25), []
    for layer in (network.draw, network.draw_boxes):
        assert layer is not None
        layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.randn(2, 4), Condition(torch.randn(2, 6)))
    assert seen == [(torch.float32, torch.float32)] * 2


def test_empty_batches_work_and_have_zero_gradients() -> None:
    network, judge = generator(), discriminator()
    generated = network(torch.randn(0, 4), Condition(torch.randn(0, 6)))
    assert generated.mask is not None
    features = judge.trunk(Canvas(generated.image, generated.mask, torch.zeros(0, dtype=torch.bool)))
    (judge.dense(features).sum() + judge.summary(features).sum()).backward()
    assert generated.image.shape == (0, 3, 16, 16)
    trained = [*network.parameters(), *(p for name, p in judge.named_parameters() if not name.startswith("heads."))]
    assert all(p.grad is not None and float(p.grad.abs().sum()) == 0 for p in trained)


def test_rows_do_not_depend_on_each_other() -> None:
    network, judge = perturbed(generator()), perturbed(discriminator())
    latent, pooled = torch.randn(4, 4), torch.randn(4, 6)
    whole, part = network(latent, Condition(pooled)), network(latent[1:2], Condition(pooled[1:2]))
    assert torch.allclose(whole.image[1:2], part.image, atol=1e-5)
    assert torch.allclose(judge.trunk(Canvas(whole.image))[0][1:2], judge.trunk(Canvas(part.image))[0], atol=1e-4)
