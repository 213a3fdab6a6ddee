"""The R3GAN recipe in mtgen's framework: grouped bottleneck blocks, and exact R1 and R2 penalties by double backward.

Source: Huang et al. 2024, "The GAN is dead; long live the GAN!" (R3GAN). Its block is 1x1 - grouped 3x3 - 1x1 at twice
the width, with 16 channels per group. The loss is relativistic pairing; both penalties are exact and apply to every
image of every step.
"""

import torch
import torch.nn.functional as F
from plain_loop import PlainLoop
from torch import Tensor, nn

from mtgen.config import Config
from mtgen.data.index import open_index
from mtgen.models.model import Networks, build
from mtgen.networks.blocks import SLOPE, ResidualBlock, activate
from mtgen.networks.generator import Generator
from mtgen.schema import Batch, Canvas, Condition
from mtgen.training.discriminator_step import DiscriminatorStep
from mtgen.training.step import Log

EXPANSION = 2
"""Width of the grouped convolution relative to the block's."""
GROUP_CHANNELS = 16
"""Channels per group."""


class GroupedBlock(nn.Module):
    """Residual block: 1x1 to `EXPANSION` times the channels, grouped 3x3, 1x1 back; its branch is zero at first.

    As published, the latent enters at the lowest level only, so the style is not used.

    Args:
        layout: memory format of its tensors.
    """

    def __init__(self, channels: int, layout: torch.memory_format) -> None:
        super().__init__()
        self.layout = layout
        wide = EXPANSION * channels
        self.first = nn.Conv2d(channels, wide, 1)
        self.second = nn.Conv2d(wide, wide, 3, padding=1, groups=max(1, wide // GROUP_CHANNELS))
        self.third = nn.Conv2d(wide, channels, 1)

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        """`[B,C,H,W]` -> the same."""
        x = x.contiguous(memory_format=self.layout)
        return x + self.third(activate(self.second(activate(self.first(activate(x))))))


def regroup(networks: Networks, layout: torch.memory_format) -> Networks:
    """Replace every dense block by a grouped one, initialized by the same rule (Fixup, Zhang et al. 2019)."""
    for network in (networks.generator, networks.side):
        parents = [(parent, name, block) for parent in network.modules() for name, block in parent.named_children()]
        dense = [(parent, name, block) for parent, name, block in parents if isinstance(block, ResidualBlock)]
        for parent, name, block in dense:
            grouped = GroupedBlock(block.first.weight.shape[3], layout)
            for layer in (grouped.first, grouped.second, grouped.third):
                nn.init.kaiming_normal_(layer.weight, a=SLOPE)
                layer.weight.data.mul_(len(dense) ** -0.25)  # L^(-1/(2m-2)) with m = 3 layers
                nn.init.zeros_(layer.bias)
            grouped.third.weight.data.zero_()
            setattr(parent, name, grouped.to(memory_format=layout))
    return networks


class ExactStep(DiscriminatorStep):
    """The discriminator step of the generation task alone, with the exact penalty gamma/2 (R1 + R2)."""

    def forward(self, batch: Batch, frozen_networks: tuple[Generator]) -> tuple[Tensor, Log]:
        """A micro-batch and the frozen generator -> the scalar loss, and its parts."""
        (generator,) = frozen_networks
        roles = self.assign_roles(batch, generator)
        task = self.tasks[0]
        with self.mixed_precision(batch.image.device):
            noise = self.noise(roles, generator)
            context = self.step_context(roles, self.side, generator, noise)
            with torch.no_grad():
                generated = generator(noise["latent"], context.condition)
                fake = self.judged(generated, roles, self.warp(roles, "fake"))
            images = torch.cat([context.real.image, fake.image]).requires_grad_()
            pooled = context.condition.pooled
            discriminator = self.side.discriminator
            summary = discriminator.summary(discriminator.trunk(Canvas(images)))
            logits = discriminator.heads[task.name](summary, Condition(torch.cat([pooled, pooled])))
            (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
            real, fake = logits.chunk(2)
            adversarial = F.softplus(fake - real).mean()
            # R1 and R2 are each a mean over their images
            penalty = context.scheduled(task.settings.gamma) / 2 * slope.square().sum() / len(real)
        return adversarial + penalty, {"adversarial": adversarial.detach(), "penalty": penalty.detach()}


def exact_penalties(config: Config, batches: list[Batch], device: str, networks: Networks | None = None) -> PlainLoop:
    """A plain loop with exact penalties; generation must be the only task of the configuration."""
    loop = PlainLoop(config, batches, device, networks=networks)
    step, *others = loop.sides[0]
    loop.sides[0] = (ExactStep(config, loop.networks.tasks, step.gate, step.augmentation, loop.networks.side), *others)
    return loop


def r3gan(
    config: Config, batches: list[Batch], device: str, layout: torch.memory_format = torch.channels_last
) -> PlainLoop:
    """A plain loop with exact penalties and grouped blocks."""
    networks = build(config, open_index(config.data.path, config.data.train_split).card)
    return exact_penalties(config, batches, device, regroup(networks, layout))


def r3gan_channels_first(config: Config, batches: list[Batch], device: str) -> PlainLoop:
    """`r3gan` in torch's default memory format, which the authors' code uses."""
    return r3gan(config, batches, device, torch.contiguous_format)
