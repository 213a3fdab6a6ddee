"""The two networks, the conditions and the tasks as a configuration and a data set ask for them; for training and inference alike."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtgen.conditions.encoder import ConditionEncoder
from mtgen.config import TASKS, Config
from mtgen.errors import ConfigError
from mtgen.networks.discriminator import Discriminator, summary_size
from mtgen.networks.generator import Generator
from mtgen.schema import Canvas, DatasetCard, Prediction
from mtgen.tasks.base import Sizes, Task


class DiscriminatorSide(nn.Module):
    """Everything that the discriminator's step trains: trunk, heads, decoder and the conditions' encoders."""

    def __init__(self, discriminator: Discriminator, conditions: ConditionEncoder) -> None:
        super().__init__()
        self.discriminator, self.conditions = discriminator, conditions


@dataclass
class Networks:
    """What a run trains: the generator, the discriminator's side, and the tasks that meet in them."""

    generator: Generator
    side: DiscriminatorSide
    tasks: list[Task]


def build(config: Config, card: DatasetCard) -> Networks:
    """Freshly initialised networks; the same for the same seed on every worker.

    Activations are channels-last, which the convolutions take over; parameters are not, since DeepSpeed cannot broadcast them so.

    Raises:
        ConfigError: a task needs labels for which the data set names no classes.
    """
    classes, mask_classes = len(card.classes), len(card.mask_classes)
    settings, chosen = config.discriminator, config.task_settings()
    sizes = Sizes(classes, mask_classes, summary_size(settings.widths), settings.decoder, settings.embedding, config.generator.latent)
    tasks: list[Task] = [TASKS[name](name, own, sizes) for name, own in chosen.items()]
    problems = [
        f"tasks.{task.name}: data set {card.name!r} names no {field} in dataset.json; switch the task off with tasks.{task.name}.weight=0"
        for task in tasks
        for need, field in (("class", "classes"), ("mask", "mask_classes"))
        if task.needs == need and not getattr(card, field)
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    channels = 1 if config.data.channels == "grey" else 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        generator = Generator(
            config.generator.widths,
            config.generator.blocks,
            config.generator.latent,
            settings.embedding,
            channels,
            mask_classes,
            config.generator.condition_scale,
        )
        heads = {task.name: head for task in tasks if (head := task.head()) is not None}
        decoder = settings.decoder if any(task.dense for task in tasks) else 0
        discriminator = Discriminator(settings.widths, settings.blocks, decoder, channels, mask_classes, heads)
        side = DiscriminatorSide(discriminator, ConditionEncoder(classes, settings.embedding))
    return Networks(generator, side, tasks)


class Model:
    """A run's networks for use: sample, read, reconstruct. Nothing of Ray, DeepSpeed, DALI or MLflow is needed.

    Attributes:
        card: what the classes are called.
        resolution: side of the images, pixels.
        channels: 1 (grey) or 3 (RGB).
        latent_size: size of the latent z.
    """

    def __init__(self, networks: Networks, config: Config, card: DatasetCard, device: torch.device | str = "cpu") -> None:
        self.networks, self.config, self.card, self.device = networks, config, card, torch.device(device)
        self.resolution, self.channels = config.resolution, networks.generator.channels
        self.latent_size = networks.generator.latent
        for network in (networks.generator, networks.side):
            network.eval().requires_grad_(False).to(self.device)

    @torch.no_grad()
    def sample(self, labels: Tensor, latent: Tensor) -> Canvas:
        """`[B]` class numbers (-1: no class asked for), `[B,Z]` standard normal -> a canvas, image about [-1, 1]."""
        labels = labels.to(self.device)
        condition = self.networks.side.conditions(labels.clamp_min(0), labels >= 0)
        return self.networks.generator(latent.to(self.device), condition)

    @torch.no_grad()
    def predict(self, image: Tensor) -> Prediction:
        """`[B,C,H,W]` in [-1, 1] -> everything that the run's tasks read in it."""
        features = self.networks.side.discriminator.trunk(Canvas(image.to(self.device)))
        prediction = Prediction()
        for task in self.networks.tasks:
            task.read(self.networks.side.discriminator, features, prediction)
        return prediction

    def reconstruct(self, image: Tensor, labels: Tensor) -> Canvas | None:
        """Images and their classes (-1: unknown) -> what the generator draws from the posterior's mean; `None` without that task."""
        posterior = self.predict(image).posterior
        return None if posterior is None else self.sample(labels, posterior[0])
