"""What a task is: a head, its losses on both sides, and what it adds to a prediction."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from mtgen.conditions.base import Encoded
from mtgen.conditions.encoder import ConditionEncoder
from mtgen.config import TaskSettings
from mtgen.networks.discriminator import Discriminator
from mtgen.networks.generator import CanvasSpec, ConditionSpec, Generator
from mtgen.schema import Batch, Canvas, Condition, Prediction, Prompt

LossDict = dict[str, Tensor]


@dataclass(frozen=True)
class TaskSizes:
    """What a task has to know of the data and the networks to build its head.

    Attributes:
        classes, mask_classes: numbers of classes; 0 where the data set has none.
        size: height and width of the images, pixels.
        widths: channels of the trunk's levels, from the lowest upwards.
        sides: height and width of these levels.
        decoder: channels of the U-Net decoder.
        embedding: dimensions of the shared representation space.
        latent: size of the latent z.
        conditions: modalities that are switched on.
    """

    classes: int
    mask_classes: int
    size: tuple[int, int]
    widths: tuple[int, ...]
    sides: tuple[tuple[int, int], ...]
    decoder: int
    embedding: int
    latent: int
    conditions: tuple[str, ...] = ()

    @property
    def summary(self) -> int:
        """Length of the trunk's lowest level as a vector."""
        return self.widths[0] * self.sides[0][0] * self.sides[0][1]


@dataclass
class TaskFeatures:
    """A task's own copies of the trunk's features, from the gradient gate.

    Attributes:
        reading: every level for the rows whose labels are hidden: images alone.
        rest: the lowest level for all other rows of the step, in order.
        submitted: every level for the canvases that the task itself submitted; empty where it submitted none.
    """

    reading: list[Tensor]
    rest: Tensor
    submitted: list[Tensor] = field(default_factory=list)

    @property
    def lowest(self) -> Tensor:
        """The lowest level for all rows of the step: `[B*,C,h,w]`."""
        return torch.cat([self.reading[0], self.rest])


class DiscriminatorModuleLike(Protocol):
    """The discriminator's side: trunk, decoder and heads, and the encoders of conditions."""

    discriminator: Discriminator
    conditions: ConditionEncoder


@dataclass
class StepContext:
    """One micro-batch as a step laid it out, for the tasks to compute their losses from.

    Rows are sorted: first those whose labels the discriminator does not see ("reading rows": images alone), then the rest.

    Attributes:
        batch: images and masks as the discriminator sees them (augmented); `original` is what they were.
        prompt: what is asked for, row by row; its values are there for all samples that have them, asked for or not.
        encoded: the prompt's values in the shared space, and `condition`, what of them is asked for; the generator draws for it.
        real, fake: canvases as the discriminator sees them; `fake` is drawn after the rest is laid out.
        reading: number of reading rows.
        plain: `[P]` the reading rows that the augmentation left as they are, and `plain_position` `[P]`, their positions, on the CPU.
        partner: `[B]` for each row another row, of another sample; itself where there is none.
        pairs: `[N]` plain rows whose partner is a plain row too.
        penalized: `[Q]` rows with a gradient penalty; the trunk's forward ends with their noised real and fake copies.
        side, generator: the networks; the one that the step does not train is frozen.
        noise: a standard normal `[P,Z]` for the posterior of the plain rows; `pair_noise` `[N,2,Z]`: two latents for each pair;
            `pair_noise_image` `[N,C,H,W]`: an image of noise for each (discriminator's step only).
        real_features: trunk features of the real rows (generator's step only, without gradients).
        unaugmented: `[B]` bool: the generated samples that the augmentation left as they are (set with `fake`).
        sigma: size of the noise of the finite-difference penalty.
        logit_gap: `[B]` real minus generated logits of this forward's pairs, detached (discriminator's step only).
        counts: number of samples in the whole *global* batch: "all", "penalized", "plain", "pairs", "reading"; of reading rows with
            a component, by its name ("class", "mask", ...); of plain rows with one ("plain boxes", ...).
    """

    batch: Batch
    original: Batch
    prompt: Prompt
    encoded: dict[str, Encoded]
    condition: Condition
    real: Canvas
    reading: int
    plain: Tensor
    plain_position: Tensor
    partner: Tensor
    pairs: Tensor
    penalized: Tensor
    side: DiscriminatorModuleLike
    generator: Generator
    noise: Tensor
    pair_noise: Tensor
    sigma: float
    counts: dict[str, int]
    fake: Canvas = field(init=False)
    unaugmented: Tensor = field(init=False)
    pair_noise_image: Tensor = field(init=False)
    real_features: list[Tensor] | None = None
    logit_gap: Tensor | None = None

    @property
    def discriminator(self) -> Discriminator:
        """Trunk, decoder and heads."""
        return self.side.discriminator

    @property
    def is_conditioned(self) -> Tensor:
        """`[B]` bool: rows for which something is asked that tells what should be in the image."""
        some = torch.zeros(len(self.batch), dtype=torch.bool, device=self.batch.image.device)
        for name, given in self.prompt.given.items():
            if name != "domain":
                some = some | given
        return some

    def mean(self, values: Tensor, of: str) -> Tensor:
        """`[n]` values of this micro-batch -> their part of the mean over the global batch, 0 where nothing carries the label.

        The parts of all workers and micro-batches, averaged as DeepSpeed averages gradients, give the mean over all that carry it.
        """
        parts = len(self.batch.step_position) / len(self.batch)
        return values.float().sum() * (parts / max(self.counts[of], 1))


class Task:
    """One task: everything that is its own. Subclasses live in one file each and register themselves in `config.TASKS`.

    A micro-batch may have no row that a loss is about, on one worker or on all: compute the loss all the same (it is 0), so that every
    worker has a gradient for every parameter; workers that reduced different sets of gradients would wait for each other for ever.

    Class attributes:
        Settings: the task's section of the configuration; its `needs` names the component that the task learns from, its
            `metric` what tells how well.
        dense: whether it reads the U-Net decoder.
        requests_canvases: whether it asks the generator for canvases of its own (`request`).
    """

    Settings: ClassVar[type[TaskSettings]] = TaskSettings
    dense: ClassVar[bool] = False
    requests_canvases: ClassVar[bool] = False

    def __init__(self, name: str, settings: Any, sizes: TaskSizes) -> None:
        """Raises `ConfigError` where the settings cannot work with these sizes."""
        self.name = name
        self.settings = settings
        self.sizes = sizes

    def head(self) -> nn.Module | None:
        """The task's own layers on top of the discriminator's trunk or decoder."""
        return None

    def canvas_spec(self, drawing: CanvasSpec) -> CanvasSpec:
        """What the canvas holds when this task is on, given what it holds without."""
        return drawing

    def condition_spec(self, guidance: ConditionSpec) -> ConditionSpec:
        """What the generator is guided by when this task is on, given what it is without."""
        return guidance

    def discriminator_canvases(self, scene: StepContext) -> Canvas | None:
        """Canvases that the discriminator's step should read besides the step's own, drawn without gradients: its `TaskFeatures.own`."""
        return None

    def discriminator_losses(self, scene: StepContext, views: TaskFeatures) -> LossDict:
        """Losses that train the discriminator's side, before the task's weight."""
        return {}

    def generator_request(self, scene: StepContext) -> tuple[Tensor, Condition] | None:
        """Latents and conditions for which the generator's step should draw canvases for this task alone."""
        return None

    def discriminator_part(self, scene: StepContext, canvas: Canvas) -> Canvas | None:
        """The part of the canvas that `request` asked for that the frozen discriminator should read: its `TaskFeatures.own`."""
        return None

    def generator_losses(self, scene: StepContext, views: TaskFeatures) -> LossDict:
        """Losses that train the generator through the frozen discriminator, before the task's weight."""
        return {}

    def canvas_losses(self, scene: StepContext, canvas: Canvas) -> LossDict:
        """Losses on the canvas that `request` asked for, before the task's weight."""
        return {}

    def predict(self, discriminator: Discriminator, features: list[Tensor], prediction: Prediction) -> None:
        """Add what this task reads in images to a prediction."""
