"""The two networks, the conditions and the tasks as a configuration and a data set ask for them; for training and inference alike."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtgen.conditions.base import ConditionSizes, Modality
from mtgen.conditions.encoder import ConditionEncoder
from mtgen.config import CONDITIONS, TASKS, Config
from mtgen.data.tokenizer import open_tokenizer
from mtgen.errors import ConfigError
from mtgen.networks.discriminator import Discriminator
from mtgen.networks.generator import CanvasSpec, ConditionSpec, Generator
from mtgen.networks.pyramid import level_sizes
from mtgen.schema import Batch, Canvas, Condition, DatasetCard, Prediction, Prompt
from mtgen.tasks.base import Task, TaskSizes


class DiscriminatorModule(nn.Module):
    """Everything that the discriminator's step trains: trunk, heads, decoder and the conditions' encoders."""

    def __init__(self, discriminator: Discriminator, conditions: ConditionEncoder) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.conditions = conditions

    def embed(self, image: Tensor) -> Tensor:
        """`[B,C,H,W]` in [-1, 1] -> `[B,d]`, of length 1, in the shared representation space."""
        discriminator = self.discriminator
        return discriminator.heads["alignment"](discriminator.summary(discriminator.trunk(Canvas(image))))


@dataclass
class Networks:
    """What a run trains: the generator, the discriminator's side, and the tasks that meet in them."""

    generator: Generator
    side: DiscriminatorModule
    tasks: list[Task]


def _problems(config: Config, card: DatasetCard) -> list[str]:
    """What tasks and conditions need and the data set, or the rest of the configuration, does not have."""
    fields = {"class": "classes", "mask": "mask_classes", "boxes": "classes"}
    found = [
        f"tasks.{name}: data set {card.name!r} names no {field} in dataset.json; switch the task off with tasks.{name}.weight=0"
        for name, settings in config.task_settings().items()
        if (field := fields.get(settings.needs or "")) and not getattr(card, field)
    ]
    if "image" in config.condition_settings() and "alignment" not in config.task_settings():
        found.append(
            "conditions.image: an image is asked for by its embedding, which the alignment task learns; add tasks.alignment={}"
        )
    return found


def _modalities(config: Config, card: DatasetCard) -> dict[str, Modality]:
    """The modalities that are switched on and for which the data set names something."""
    sizes = ConditionSizes(
        classes=len(card.classes),
        mask_classes=len(card.mask_classes),
        domains=max(1, len(config.data.mixture)),
        vocabulary=open_tokenizer(config.data.tokenizer).vocabulary,
        sound=(config.data.sound.mels, config.data.sound.frames),
        size=config.discriminator.embedding,
    )
    chosen = config.condition_settings().items()
    return {
        name: CONDITIONS[name](settings, sizes)
        for name, settings in chosen
        if CONDITIONS[name].field is None or getattr(card, CONDITIONS[name].field)
    }


def build(config: Config, card: DatasetCard) -> Networks:
    """Freshly initialized networks; the same for the same seed on every worker.

    Activations are channels-last, which the convolutions take over; parameters are not, since DeepSpeed cannot broadcast them so.

    Raises:
        ConfigError: a task needs labels for which the data set names no classes, or what the rest of the configuration does not have.
        DataError: the tokenizer cannot be read.
    """
    if problems := _problems(config, card):
        raise ConfigError("\n".join(problems))
    settings, levels = config.discriminator, len(config.discriminator.widths)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        conditions = ConditionEncoder(_modalities(config, card), settings.embedding)
        sizes = TaskSizes(
            classes=len(card.classes),
            mask_classes=len(card.mask_classes),
            size=config.size,
            widths=tuple(settings.widths),
            sides=tuple(level_sizes(config.base, levels)),
            decoder=settings.decoder,
            embedding=settings.embedding,
            latent=config.generator.latent,
            conditions=tuple(conditions.modalities),
        )
        tasks: list[Task] = [TASKS[name](name, own, sizes) for name, own in config.task_settings().items()]
        drawing = CanvasSpec(1 if config.data.channels == "gray" else 3, sizes.mask_classes)
        guidance = ConditionSpec(
            settings.embedding * conditions.sequences, config.generator.attention, conditions.layout_channels
        )
        for task in tasks:
            drawing, guidance = task.canvas_spec(drawing), task.condition_spec(guidance)
        generator = Generator(
            config.generator.widths,
            config.generator.blocks,
            config.base,
            config.generator.latent,
            settings.embedding,
            drawing,
            guidance,
            config.generator.condition_scale,
        )
        heads = {task.name: head for task in tasks if (head := task.head()) is not None}
        decoder = settings.decoder if any(task.dense for task in tasks) else 0
        discriminator = Discriminator(settings.widths, settings.blocks, decoder, drawing, heads)
    return Networks(generator, DiscriminatorModule(discriminator, conditions), tasks)


class Model:
    """A run's networks for use: sample, read, reconstruct, translate. Nothing of Ray, DeepSpeed, DALI or MLflow is needed.

    Attributes:
        card: what the classes are called.
        size: height and width of the images, pixels.
        channels: 1 (gray) or 3 (RGB).
        latent_size: size of the latent z.
        conditions: modalities that images can be asked for by.
        translates: the modality that names the domains to translate between; `None` without that task.
    """

    def __init__(
        self, networks: Networks, config: Config, card: DatasetCard, device: torch.device | str = "cpu"
    ) -> None:
        self.networks = networks
        self.config = config
        self.card = card
        self.device = torch.device(device)
        self.size = config.size
        self.channels = networks.generator.canvas_spec.channels
        self.latent_size = networks.generator.latent
        self.conditions = list(networks.side.conditions.modalities)
        translation = config.task_settings().get("translation")
        self.translates: str | None = getattr(translation, "domain", None)
        for network in (networks.generator, networks.side):
            network.eval().requires_grad_(False).to(self.device)

    @torch.no_grad()
    def condition(self, prompt: Prompt) -> Condition:
        """What is asked for, in the shared representation space; modalities that the run was not trained on are left out."""
        known = [name for name in prompt.values if name in self.conditions]
        values, given = ({name: part[name] for name in known} for part in (prompt.values, prompt.given))
        return self.networks.side.conditions(Prompt(prompt.size, values, given).to(self.device))

    @torch.no_grad()
    def prompt_from_batch(self, batch: Batch, name: str) -> Prompt:
        """Each sample of a batch asked for by its own modality `name` alone, where it has that; an image by its embedding."""
        modality = self.networks.side.conditions.modality(name)
        value = self.networks.side.embed(batch.image.to(self.device)) if name == "image" else modality.value(batch)
        everywhere = torch.ones(len(batch), dtype=torch.bool, device=batch.image.device)
        return Prompt(
            len(batch), {name: value}, {name: batch.present[modality.component] if modality.component else everywhere}
        )

    def embed(self, prompt: Prompt) -> Tensor:
        """A prompt -> `[B,d]`: the mean of its modalities in the shared representation space."""
        return self.condition(prompt).pooled

    @torch.no_grad()
    def sample(self, prompt: Prompt, latent: Tensor) -> Canvas:
        """A prompt of B rows, `[B,Z]` standard normal -> a canvas, image about [-1, 1]."""
        return self.networks.generator(latent.to(self.device), self.condition(prompt))

    @torch.no_grad()
    def predict(self, image: Tensor) -> Prediction:
        """`[B,C,H,W]` in [-1, 1] -> everything that the run's tasks read in it."""
        features = self.networks.side.discriminator.trunk(Canvas(image.to(self.device)))
        prediction = Prediction()
        for task in self.networks.tasks:
            task.predict(self.networks.side.discriminator, features, prediction)
        return prediction

    def reconstruct(self, image: Tensor, prompt: Prompt) -> Canvas | None:
        """Images and what is known of them -> what the generator draws from the posterior's mean; `None` without that task."""
        posterior = self.predict(image).posterior
        return None if posterior is None else self.sample(prompt, posterior[0])

    @torch.no_grad()
    def translate(self, image: Tensor, prompt: Prompt, latent: Tensor) -> Canvas | None:
        """Images `[B,C,H,W]`, a prompt with their new domain, `[B,Z]` -> the images in that domain; `None` without that task."""
        content = self.predict(image).content
        if content is None:
            return None
        return self.networks.generator(
            latent.to(self.device), Condition(self.condition(prompt).pooled, content=content)
        )
