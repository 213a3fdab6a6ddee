"""The published recipe of a GAN without normalization, in mtgen's frame: grouped bottleneck blocks, and R1 and R2 by double backward.

Source: Huang et al. 2024, "The GAN is dead; long live the GAN!" (R3GAN): its block is 1x1 - grouped 3x3 - 1x1 at twice the width with
16 channels a group; relativistic pairing loss, both penalties exactly and on every image of every step.
"""

import torch
import torch.nn.functional as F
from plain import Plain
from torch import Tensor, nn

from mtgen.config import Config
from mtgen.data.index import open_index
from mtgen.models.model import Networks, build
from mtgen.networks.blocks import SLOPE, ResidualBlock, activate
from mtgen.networks.generator import Generator
from mtgen.schema import Batch, Canvas, Condition
from mtgen.training.steps import DiscriminatorStep, Log

EXPANSION = 2
GROUP = 16
"""Channels of a group."""


class GroupedBlock(nn.Module):
    """1x1 to `EXPANSION` times the channels, grouped 3x3, 1x1 back, on a residual branch that starts at zero.

    The latent enters at the lowest level alone, as published: the style is not used.

    Args:
        layout: in which its tensors lie in memory.
    """

    def __init__(self, channels: int, layout: torch.memory_format) -> None:
        super().__init__()
        self.layout = layout
        wide = EXPANSION * channels
        self.first = nn.Conv2d(channels, wide, 1)
        self.second = nn.Conv2d(wide, wide, 3, padding=1, groups=max(1, wide // GROUP))
        self.third = nn.Conv2d(wide, channels, 1)

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        """`[B,C,H,W]` -> the same."""
        x = x.contiguous(memory_format=self.layout)
        return x + self.third(activate(self.second(activate(self.first(activate(x))))))


def regroup(networks: Networks, layout: torch.memory_format) -> Networks:
    """The networks with a grouped block in the place of every dense one, initialized after the same rule (Zhang et al. 2019, Fixup)."""
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
    """The discriminator's step of generation alone, with gamma/2 (R1 + R2) from the gradients themselves."""

    def forward(self, batch: Batch, frozen_networks: tuple[Generator]) -> tuple[Tensor, Log]:
        """A micro-batch and the frozen generator -> one scalar, and its parts."""
        (generator,) = frozen_networks
        roles = self.assign_roles(batch, generator)
        task = self.tasks[0]
        with self.mixed_precision(batch.image.device):
            context = self.step_context(roles, self.side, generator)
            with torch.no_grad():
                fake, _ = self.as_seen(generator(self.latents(roles, generator), context.condition), roles)
            images = torch.cat([context.real.image, fake.image]).requires_grad_()
            pooled = context.condition.pooled
            discriminator = self.side.discriminator
            summary = discriminator.summary(discriminator.trunk(Canvas(images)))
            logits = discriminator.heads[task.name](summary, Condition(torch.cat([pooled, pooled])))
            (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
            real, fake = logits.chunk(2)
            adversarial = F.softplus(fake - real).mean()
            penalty = (
                task.settings.gamma / 2 * slope.square().sum() / len(real)
            )  # R1 and R2, each a mean over its images
        return adversarial + penalty, {"adversarial": adversarial.detach(), "penalty": penalty.detach()}


def exact(config: Config, batches: list[Batch], device: str, networks: Networks | None = None) -> Plain:
    """A plain loop with this step; the configuration has generation alone."""
    plain = Plain(config, batches, device, networks=networks)
    step, *others = plain.sides[0]
    exact_step = ExactStep(config, plain.networks.tasks, step.gate, step.augmentation, plain.networks.side)
    plain.sides[0] = (exact_step, *others)
    return plain


def published(
    config: Config, batches: list[Batch], device: str, layout: torch.memory_format = torch.channels_last
) -> Plain:
    """The same, with these blocks too."""
    networks = build(config, open_index(config.data.path, config.data.train_split).card)
    return exact(config, batches, device, regroup(networks, layout))


def channels_first(config: Config, batches: list[Batch], device: str) -> Plain:
    """The published one in torch's usual layout, as its authors' code has it."""
    return published(config, batches, device, torch.contiguous_format)
