"""Training as a plain torch loop: a run's networks, steps, Adam and averaged weights, with its batches in memory."""

from dataclasses import replace
from typing import Any

import torch

from mtgen.config import Config, decide_here
from mtgen.data.index import open_index
from mtgen.data.loader import Loader
from mtgen.data.transform_spec import transform_spec_of
from mtgen.models.ema import EMA
from mtgen.models.model import Networks, build
from mtgen.schema import Batch
from mtgen.training.optimizer import GuardedAdam
from mtgen.training.step import frozen
from mtgen.training.steps import build_steps

BATCHES_IN_MEMORY = 8
"""Default number of batches that the loop cycles through."""


def load_batches(config: Config, device: str, count: int = BATCHES_IN_MEMORY) -> list[Batch]:
    """Load the first batches of a run's data, with all components that its tasks and conditions need."""
    index = open_index(config.data.path, config.data.train_split)
    with Loader(index, transform_spec_of(config, device), batch_size=config.batch_size, rank=0, world=1) as loader:
        return [next(loader).to(device) for _ in range(count)]


class PlainLoop:
    """Training of both networks of a run without Ray, DeepSpeed, DALI and tracking.

    Args:
        config: configuration of the run.
        batches: training batches, cycled through.
        group: process group of the gates; `None`: the default group, if there is one.
        networks: networks to train; default: those of the configuration.
    """

    def __init__(
        self, config: Config, batches: list[Batch], device: str, group: Any = None, networks: Networks | None = None
    ) -> None:
        config, _ = decide_here(config.model_copy(update={"device": device}))
        self.config = config
        self.batches = batches
        self.number = 0
        self.images = 0
        self.networks = networks = networks or build(config, open_index(config.data.path, config.data.train_split).card)
        d_step, g_step, self.gates = build_steps(config, networks)
        for gate in self.gates.values():
            gate.process_group = group
        for network in (networks.generator, networks.side):
            network.to(device)

        def adam(network: torch.nn.Module, rate: float) -> GuardedAdam:
            return GuardedAdam(
                network.parameters(),
                rate,
                config.train.beta2,
                partitioned=False,
                scaled=False,
                clip=config.train.clip_factor,
            )

        self.sides = [
            (d_step, networks.generator, adam(networks.side, config.discriminator.learning_rate)),
            (g_step, networks.side, adam(networks.generator, config.generator.learning_rate)),
        ]
        self.average = EMA([("generator", networks.generator), ("side", networks.side)], config.train.ema_half_life)

    def step(self) -> None:
        """Update the discriminator module, the generator and the averaged weights once each."""
        batch = replace(self.batches[self.number % len(self.batches)])
        for step, other, optimizer in self.sides:
            optimizer.zero_grad()
            with frozen(other):
                loss, _ = step(batch, (other,))
                loss.backward()
            optimizer.step()
        self.number, self.images = self.number + 1, self.images + len(batch)
        self.average.update(len(batch), self.images)
