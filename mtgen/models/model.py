"""The networks, conditions and tasks of a configuration and a data set, for training and for inference."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtgen.conditions.base import ConditionSizes, Modality
from mtgen.conditions.encoder import ConditionEncoder
from mtgen.config import CONDITIONS, TASKS, Config
from mtgen.data.tokenizer import open_tokenizer
from mtgen.errors import ConfigError
from mtgen.models.backbone_files import build_backbone
from mtgen.networks.discriminator import Discriminator
from mtgen.networks.generator import CanvasSpec, ConditionSpec, Generator
from mtgen.networks.pyramid import level_sizes, levels_of_sides
from mtgen.schema import Batch, Canvas, Condition, DatasetCard, Prediction, Prompt
from mtgen.tasks.base import Task, TaskSizes


class DiscriminatorModule(nn.Module):
    """All modules that the discriminator's step trains: trunk, heads, decoder, and the encoders of the conditions."""

    def __init__(self, discriminator: Discriminator, conditions: ConditionEncoder) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.conditions = conditions

    def parameter_groups(self, backbone_rate: float) -> list[tuple[list[nn.Parameter], float]]:
        """Parameters and the factor of their learning rate: those of a fine-tuned backbone have their own."""
        backbone = self.discriminator.backbone
        own = [] if backbone is None else [p for p in backbone.parameters() if p.requires_grad]
        known = {id(parameter) for parameter in own}
        rest = [parameter for parameter in self.parameters() if id(parameter) not in known]
        return [(rest, 1.0), *([(own, backbone_rate)] if own else [])]

    def embed(self, image: Tensor) -> Tensor:
        """Images `[B,C,H,W]` in [-1, 1] -> unit vectors `[B,d]` in the shared representation space."""
        discriminator = self.discriminator
        return discriminator.heads["alignment"](discriminator.summary(discriminator.trunk(Canvas(image))))


@dataclass
class Networks:
    """What a run trains.

    Attributes:
        generator: the generator.
        side: the discriminator module; its name is part of the parameter names in checkpoints.
        tasks: the tasks that train both.
    """

    generator: Generator
    side: DiscriminatorModule
    tasks: list[Task]


class Predictor(nn.Module):
    """The discriminator as a predictor of all tasks' labels.

    Args:
        discriminator: trunk, decoder and heads.
        tasks: those that predict.
    """

    def __init__(self, discriminator: Discriminator, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.tasks = tasks

    def forward(self, image: Tensor) -> Prediction:
        """Images `[B,C,H,W]` in [-1, 1] -> the predictions of all tasks."""
        levels, prediction = self.discriminator.trunk(Canvas(image)), Prediction()
        for task in self.tasks:
            task.predict(self.discriminator, levels, prediction)
        return prediction


def _problems(config: Config, card: DatasetCard) -> list[str]:
    """Requirements of tasks and conditions that the data set or the rest of the configuration does not meet."""
    fields = {"class": "classes", "mask": "mask_classes", "boxes": "classes"}
    problems = [
        f"tasks.{name}: data set {card.name!r} names no {field} in dataset.json; "
        f"switch the task off with tasks.{name}.weight=0"
        for name, settings in config.task_settings().items()
        if (field := fields.get(settings.needs or "")) and not getattr(card, field)
    ]
    if "image" in config.condition_settings() and "alignment" not in config.task_settings():
        problems.append("conditions.image: needs the embedding that the alignment task trains; add tasks.alignment={}")
    return problems


def _modalities(config: Config, card: DatasetCard) -> dict[str, Modality]:
    """The modalities that are switched on, except those whose names the data set does not have."""
    sizes = ConditionSizes(
        classes=len(card.classes),
        mask_classes=len(card.mask_classes),
        domains=max(1, len(config.data.mixture)),
        vocabulary=open_tokenizer(config.data.tokenizer).vocabulary,
        sound=(config.data.sound.mels, config.data.sound.frames),
        size=config.discriminator.embedding,
    )
    return {
        name: CONDITIONS[name](settings, sizes)
        for name, settings in config.condition_settings().items()
        if CONDITIONS[name].field is None or getattr(card, CONDITIONS[name].field)
    }


def build(config: Config, card: DatasetCard) -> Networks:
    """Initialize the networks; the result is a function of configuration and card, hence equal on every worker.

    Activations are channels-last, as the convolutions propagate; parameters are not, because DeepSpeed cannot broadcast
    channels-last tensors.

    Raises:
        ConfigError: a task or condition needs something that the data set or the configuration does not have.
        DataError: the tokenizer, or the file of a pretrained network, cannot be read.
    """
    if problems := _problems(config, card):
        raise ConfigError("\n".join(problems))
    settings, levels = config.discriminator, len(config.discriminator.widths)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        conditions = ConditionEncoder(_modalities(config, card), settings.embedding)
        sizes = TaskSizes(
            class_names=tuple(card.classes),
            mask_class_names=tuple(card.mask_classes),
            size=config.size,
            widths=tuple(settings.widths),
            sides=tuple(level_sizes(config.base, levels)),
            decoder=settings.decoder,
            embedding=settings.embedding,
            latent=config.generator.latent,
            conditions=tuple(conditions.modalities),
        )
        tasks: list[Task] = [TASKS[name](name, own, sizes) for name, own in config.task_settings().items()]
        for task in tasks:
            task.connect({other.name: other for other in tasks})
        canvas_spec = CanvasSpec(1 if config.data.channels == "gray" else 3, sizes.mask_classes)
        condition_spec = ConditionSpec(
            settings.embedding * conditions.sequences, config.generator.attention, conditions.layout_channels
        )
        for task in tasks:
            canvas_spec = task.canvas_spec(canvas_spec)
            condition_spec = task.condition_spec(condition_spec)
        generator = Generator(
            config.generator.widths,
            config.generator.blocks,
            config.base,
            config.generator.latent,
            settings.embedding,
            canvas_spec,
            condition_spec,
            config.generator.condition_scale,
            levels_of_sides(config.generator.self_attention, config.base, levels),
        )
        heads = {task.name: head for task in tasks if (head := task.head()) is not None}
        decoder = settings.decoder if any(task.dense for task in tasks) else 0
        discriminator = Discriminator(
            settings.widths,
            settings.blocks,
            decoder,
            canvas_spec,
            heads,
            levels_of_sides(settings.self_attention, config.base, levels),
            settings.downsampling == "filtered",
            build_backbone(config),
            separate=config.judges_separately,
            pretrained_judge=settings.backbone is not None and bool(settings.backbone.judge),
        )
    return Networks(generator, DiscriminatorModule(discriminator, conditions), tasks)


class Model:
    """A run's networks for inference: sample, predict, reconstruct, translate. Needs no Ray, DeepSpeed, DALI or MLflow.

    Attributes:
        card: the data set's card, with the names of the classes.
        size: height and width of the images, pixels.
        channels: 1 (gray) or 3 (RGB).
        latent_size: size of the latent z.
        conditions: modalities that images can be conditioned on.
        translates: the modality whose values are the domains to translate between; `None` without that task.
        backbone: settings of the pretrained network that the discriminator reads; `None` without one.
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
        self.backbone = config.discriminator.backbone
        for network in (networks.generator, networks.side):
            network.eval().requires_grad_(False).to(self.device)

    @torch.no_grad()
    def condition(self, prompt: Prompt) -> Condition:
        """Encode a prompt in the shared representation space, without modalities that the run was not trained on."""
        known = [name for name in prompt.values if name in self.conditions]
        values, given = ({name: part[name] for name in known} for part in (prompt.values, prompt.given))
        return self.networks.side.conditions(Prompt(prompt.size, values, given).to(self.device))

    @torch.no_grad()
    def prompt_from_batch(self, batch: Batch, name: str) -> Prompt:
        """A prompt from one modality of a batch, for the samples that have it; images are given by their embeddings."""
        modality = self.networks.side.conditions.modality(name)
        value = self.networks.side.embed(batch.image.to(self.device)) if name == "image" else modality.value(batch)
        if modality.component:
            given = batch.present[modality.component]
        else:
            given = torch.ones(len(batch), dtype=torch.bool, device=batch.image.device)
        return Prompt(len(batch), {name: value}, {name: given})

    def embed(self, prompt: Prompt) -> Tensor:
        """A prompt of B rows -> `[B,d]`: the mean of its modalities in the shared representation space."""
        return self.condition(prompt).pooled

    @torch.no_grad()
    def sample(self, prompt: Prompt, latent: Tensor) -> Canvas:
        """A prompt of B rows, latents `[B,Z]` (standard normal) -> canvas, with images about -1 to 1."""
        return self.networks.generator(latent.to(self.device), self.condition(prompt))

    @torch.no_grad()
    def predict(self, image: Tensor) -> Prediction:
        """Images `[B,C,H,W]` in [-1, 1] -> the predictions of all tasks of the run."""
        return Predictor(self.networks.side.discriminator, self.networks.tasks)(image.to(self.device))

    def reconstruct(self, image: Tensor, prompt: Prompt) -> Canvas | None:
        """Generate images again from their posterior's mean and a prompt; `None` without the reconstruction task."""
        posterior = self.predict(image).posterior
        return None if posterior is None else self.sample(prompt, posterior[0])

    @torch.no_grad()
    def translate(self, image: Tensor, prompt: Prompt, latent: Tensor) -> Canvas | None:
        """Images, a prompt with the target domain, latents `[B,Z]` -> translated images.

        Returns `None` without the translation task.
        """
        content = self.predict(image).content
        if content is None:
            return None
        return self.networks.generator(
            latent.to(self.device), Condition(self.condition(prompt).pooled, content=content)
        )
