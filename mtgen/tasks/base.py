"""What a task is: a head, its losses on both sides, and what it adds to a prediction."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mtgen.config import TaskSettings
from mtgen.networks.discriminator import Discriminator
from mtgen.networks.generator import Generator
from mtgen.schema import Batch, Canvas, Condition, Prediction

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """What a task has to know of the data and the networks to build its head.

    Attributes:
        classes, mask_classes: numbers of classes; 0 where the data set has none.
        summary: length of the trunk's lowest level as a vector.
        decoder: channels of the U-Net decoder.
        embedding: dimensions of the shared representation space.
        latent: size of the latent z.
    """

    classes: int
    mask_classes: int
    summary: int
    decoder: int
    embedding: int
    latent: int


@dataclass
class Views:
    """A task's own copies of the trunk's features, from the gradient gate.

    Attributes:
        reading: every level for the rows whose mask is hidden: images alone.
        rest: the lowest level for all other rows of the forward, in order.
    """

    reading: list[Tensor]
    rest: Tensor

    @property
    def lowest(self) -> Tensor:
        """The lowest level for all rows: `[B*,C,4,4]`."""
        return torch.cat([self.reading[0], self.rest])


@dataclass
class Scene:
    """One micro-batch as a step laid it out, for the tasks to compute their losses from.

    Rows are sorted: first those whose mask the discriminator does not see ("reading rows": images alone), then the rest.

    Attributes:
        batch: images and masks as the discriminator sees them (augmented); `original` is what they were.
        condition: what is asked for, row by row; the generator draws for the same conditions.
        real, fake: canvases as the discriminator sees them; `fake` is drawn after the rest is laid out.
        reading: number of reading rows.
        plain: `[P]` the reading rows that the augmentation left as they are.
        penalised: `[Q]` rows with a gradient penalty; the trunk's forward ends with their noised real and fake copies.
        discriminator, generator: the networks; the one that the step does not train is frozen.
        noise: a standard normal `[P,Z]` for the posterior of the plain rows.
        real_features: trunk features of the real rows (generator's step only, without gradients).
        sigma: size of the noise of the finite-difference penalty.
        ahead: `[B]` real minus generated logits of this forward's pairs, detached (discriminator's step only).
        counts: number of samples in the whole *global* batch: "all", "penalised", "plain", "reading", and of reading rows
            with "class", "mask".
    """

    batch: Batch
    original: Batch
    condition: Condition
    real: Canvas
    reading: int
    plain: Tensor
    penalised: Tensor
    discriminator: Discriminator
    generator: Generator
    noise: Tensor
    sigma: float
    counts: dict[str, int]
    fake: Canvas = field(init=False)
    real_features: list[Tensor] | None = None
    ahead: Tensor | None = None

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
        Settings: the task's section of the configuration.
        dense: whether it reads the U-Net decoder.
        draws: whether it asks the generator for canvases of its own (`request`).
        needs: the label it learns from ("class", "mask"), or `None`.
    """

    Settings: ClassVar[type[TaskSettings]] = TaskSettings
    dense: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    needs: ClassVar[str | None] = None

    def __init__(self, name: str, settings: Any, sizes: Sizes) -> None:
        self.name, self.settings, self.sizes = name, settings, sizes

    def head(self) -> nn.Module | None:
        """The task's own layers on top of the discriminator's trunk or decoder."""
        return None

    def discriminator_losses(self, scene: Scene, views: Views) -> Losses:
        """Losses that train the discriminator's side, before the task's weight."""
        return {}

    def generator_losses(self, scene: Scene, views: Views) -> Losses:
        """Losses that train the generator through the frozen discriminator, before the task's weight."""
        return {}

    def request(self, scene: Scene) -> tuple[Tensor, Condition] | None:
        """Latents and conditions for which the generator's step should draw canvases for this task alone."""
        return None

    def canvas_losses(self, scene: Scene, canvas: Canvas) -> Losses:
        """Losses on the canvas that `request` asked for, before the task's weight."""
        return {}

    def read(self, discriminator: Discriminator, features: list[Tensor], prediction: Prediction) -> None:
        """Add what this task reads in images to a prediction."""
