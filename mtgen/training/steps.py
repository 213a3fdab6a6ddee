"""Both training steps over the networks of a run, with the gates in them."""

from mtgen.balancing.factory import build_gates
from mtgen.balancing.gate import Gate
from mtgen.config import Config
from mtgen.models.model import Networks
from mtgen.training.augment import AdaptiveAugmentation
from mtgen.training.discriminator_step import DiscriminatorStep
from mtgen.training.generator_step import GeneratorStep


def build_steps(
    config: Config, networks: Networks, augmentation: AdaptiveAugmentation | None = None
) -> tuple[DiscriminatorStep, GeneratorStep, dict[str, Gate]]:
    """Build both steps over the networks, and the gates in them by name: "discriminator", "generator" and "canvas".

    Args:
        augmentation: default: as configured.
    """
    tasks, module = networks.tasks, networks.side
    augmentation = augmentation or AdaptiveAugmentation(config.augment)
    requesting = [task.name for task in tasks if task.requests_canvases]
    layers = [blocks[-1].second for blocks in module.discriminator.descent.levels]  # type: ignore[index]
    gates = build_gates(config, [task.name for task in tasks], requesting, layers)
    d_step = DiscriminatorStep(config, tasks, gates["discriminator"], augmentation, module)
    g_step = GeneratorStep(config, tasks, gates["generator"], augmentation, gates["canvas"], networks.generator)
    return d_step, g_step, gates
