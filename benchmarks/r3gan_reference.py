"""The published recipe of a GAN without normalization, in mtgen's frame: grouped bottleneck blocks, and R1 and R2 by double backward.

Source: Huang et al. 2024, "The GAN is dead; long live the GAN!" (R3GAN): its block is 1x1 - grouped 3x3 - 1x1 at twice the width with
16 channels a group; relativistic pairing loss, both penalties exactly and on every image of every step.
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
from mtgen.training.batch_roles import assign_roles
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

    def forward(self, batch: Batch, read: tuple[Generator]) -> tuple[Tensor, Log]:
        """A micro-batch and the frozen generator -> one scalar, and its parts."""
        (generator,) = read
        layout = assign_roles(self.config, batch, self.strength.probability)
        task = self.tasks[0]
        with self._autocast(batch.image.device):
            scene = self._scene(layout, self.side, generator)
            with torch.no_grad():
                latent = self._normal("latent", layout.batch.position, (generator.latent,), batch.image.device)
                self._show(scene, layout, generator(latent, scene.condition))
            images = torch.cat([scene.real.image, scene.fake.image]).requires_grad_()
            pooled = scene.condition.pooled
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


def exact(config: Config, batches: list[Batch], device: str, networks: Networks | None = None) -> PlainLoop:
    """A plain loop with this step; the configuration has generation alone."""
    plain = PlainLoop(config, batches, device, networks=networks)
    step, *others = plain.sides[0]
    plain.sides[0] = (ExactStep(config, plain.networks.tasks, step.gate, step.strength, plain.networks.side), *others)
    return plain


def published(
    config: Config, batches: list[Batch], device: str, layout: torch.memory_format = torch.channels_last
) -> PlainLoop:
    """The same, with these blocks too."""
    networks = build(config, open_index(config.data.path, config.data.train_split).card)
    return exact(config, batches, device, regroup(networks, layout))


def channels_first(config: Config, batches: list[Batch], device: str) -> PlainLoop:
    """The published one in torch's usual layout, as its authors' code has it."""
    return published(config, batches, device, torch.contiguous_format)
