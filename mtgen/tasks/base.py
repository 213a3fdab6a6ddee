"""The interface of a task: a head, its losses in both training steps, and its part of a prediction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mtgen.conditions.base import Encoded
from mtgen.conditions.encoder import ConditionEncoder
from mtgen.config import Schedule, TaskSettings, value_at
from mtgen.networks.discriminator import Discriminator
from mtgen.networks.generator import CanvasSpec, ConditionSpec, Generator
from mtgen.networks.prediction_reader import PredictionReader, readable
from mtgen.schema import Batch, Canvas, Condition, Prediction, Prompt

LossDict = dict[str, Tensor]
"""Scalar losses by name."""


class SelfTrainingSettings(TaskSettings):
    """Settings of a task that can learn from what the averaged weights predict."""

    self_training: float = Field(
        0.0,
        ge=0,
        description="weight of self-training: the labels that the averaged weights surely predict, where a sample has "
        "none; it takes one more forward",
    )


class ReaderSettings(SelfTrainingSettings):
    """Settings of a task that takes in what other tasks predict."""

    use_predictions: bool = Field(
        True, description="add to the logits what the tasks classification and tagging predict of the whole image"
    )


@dataclass(frozen=True)
class TaskSizes:
    """Sizes of the data and the networks, from which a task builds its head.

    Attributes:
        class_names: names of the classes; empty if the data set has none.
        mask_class_names: names of the mask classes; empty if the data set has none.
        size: height and width of the images, pixels.
        widths: channels of the trunk's levels, lowest resolution first.
        sides: height and width of these levels.
        decoder: channels of the U-Net decoder.
        embedding: dimensions of the shared representation space.
        latent: dimensions of the latent z.
        conditions: names of the modalities that are switched on.
    """

    class_names: tuple[str, ...]
    mask_class_names: tuple[str, ...]
    size: tuple[int, int]
    widths: tuple[int, ...]
    sides: tuple[tuple[int, int], ...]
    decoder: int
    embedding: int
    latent: int
    conditions: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def mask_classes(self) -> int:
        """Number of mask classes."""
        return len(self.mask_class_names)

    @property
    def summary(self) -> int:
        """Length of the trunk's lowest level as a vector."""
        return self.widths[0] * self.sides[0][0] * self.sides[0][1]


@dataclass(frozen=True)
class TaskFeatures:
    """A task's own view of the trunk's features, from the gradient gate. Levels are ordered from the lowest resolution.

    Attributes:
        image_only: all levels of the image-only rows.
        remaining: the lowest level of all other rows of the step, in order.
        submitted: all levels of the canvases that the task itself submitted; empty if it submitted none.
        separate: the lowest level of all rows of the step from the trunk that judges them; `None` if one trunk does
            both. Then `remaining` has the real rows only.
    """

    image_only: list[Tensor]
    remaining: Tensor
    submitted: list[Tensor] = field(default_factory=list)
    separate: Tensor | None = None

    @property
    def lowest(self) -> Tensor:
        """`[B*,C,h,w]`: the lowest level of all rows of the step, in order."""
        return torch.cat([self.image_only[0], self.remaining])

    @property
    def judged(self) -> Tensor:
        """`[B*,C,h,w]`: the lowest level by which the rows of the step are judged, in order."""
        return self.lowest if self.separate is None else self.separate


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """One micro-batch in a training step: real samples, their roles, the networks, and random numbers.

    Rows are sorted: first the image-only rows, whose labels the discriminator does not see, then the joint rows, which
    it judges together with their labels. `mtgen.training.batch_roles` explains the roles.

    Attributes:
        batch: images and masks as the discriminator sees them (augmented).
        original: the same samples before augmentation.
        prompt: the conditions of each row. A value is there for every sample that has it; `prompt.given` says which are
            used.
        encoded: the prompt's values in the shared space, by modality.
        condition: the given conditions, combined; the generator's input.
        real: canvases of the real samples as the discriminator sees them.
        num_image_only: number of image-only rows.
        plain: `[P]` indices of the image-only rows that the augmentation left unchanged.
        plain_position: `[P]` their positions.
        partner: `[B]` each row's partner row, of another sample; the row itself if there is none.
        pairs: `[N]` plain rows whose partner is a plain row too.
        penalized: `[Q]` rows with a gradient penalty. In the discriminator's step the trunk's forward ends with noisy
            copies of these rows, real ones first.
        discriminator: trunk, decoder and heads; frozen in the generator's step.
        condition_encoder: encoders of the conditions; frozen in the generator's step.
        generator: frozen in the discriminator's step.
        posterior_noise: `[P,Z]` standard normal, for the posterior of the plain rows.
        pair_latents: `[N,2,Z]` standard normal, two latents per pair.
        penalty_sigma: standard deviation of the noise of the finite-difference penalty.
        counts: number of samples in the *global* batch: "all", "penalized", "plain", "pairs", "image_only", "joint"; of
            image-only rows with a component, by its name ("class", "mask", ...); of plain rows with one ("plain boxes",
            ...).
        images_seen: at the start of the step.
        images_total: length of the run, images.
        weights: role ("plain", "pairs", "penalized") -> `[n]` weights of its rows: 0 for rows that pad it to a fixed
            number (`train.static_shapes`); empty without padding.
        feature_noise: factor of the penalty's noise on pretrained features.
    """

    batch: Batch
    original: Batch
    prompt: Prompt
    encoded: dict[str, Encoded]
    condition: Condition
    real: Canvas
    num_image_only: int
    plain: Tensor
    plain_position: Tensor
    partner: Tensor
    pairs: Tensor
    penalized: Tensor
    discriminator: Discriminator
    condition_encoder: ConditionEncoder
    generator: Generator
    posterior_noise: Tensor
    pair_latents: Tensor
    penalty_sigma: float
    counts: dict[str, int]
    images_seen: int
    images_total: int
    weights: dict[str, Tensor] = field(default_factory=dict)
    feature_noise: float = 0.0

    def scheduled(self, value: float | Schedule) -> float:
        """Return the present value of a setting that can follow a schedule."""
        return value_at(value, self.images_seen, self.images_total)

    @property
    def image_only(self) -> slice:
        """The image-only rows."""
        return slice(self.num_image_only)

    @property
    def is_conditioned(self) -> Tensor:
        """`[B]` bool: rows with a given condition on the image's content; the domain alone is none."""
        found = torch.zeros(len(self.batch), dtype=torch.bool, device=self.batch.image.device)
        for name, given in self.prompt.given.items():
            if name != "domain":
                found = found | given
        return found

    def mean(self, values: Tensor, of: str) -> Tensor:
        """Return this micro-batch's part of a mean over the global batch; 0 if no sample has the label.

        The parts of all workers and micro-batches, averaged as DeepSpeed averages gradients, are the mean over
        `counts[of]` samples.

        Args:
            values: `[n]` one value per row; 0 for rows that are not among those counted. Those of a role ("plain boxes"
                is of "plain") are over its rows, or its rows several times.
            of: key of `counts`.
        """
        if (weight := self.weights.get(of.partition(" ")[0])) is not None:
            values = values * weight.repeat(len(values) // max(len(weight), 1))
        parts = len(self.batch.step_position) / len(self.batch)
        return values.float().sum() * (parts / max(self.counts[of], 1))


def _ignore(_: Tensor) -> None:
    """Default of `DiscriminatorContext.observe_logit_gap`."""


@dataclass(frozen=True)
class PseudoLabels:
    """What the averaged discriminator predicts of real images; a part is `None` if no task predicts it.

    Attributes:
        classes: `[B,K]` probabilities.
        masks: `[B,M,H,W]` probabilities, augmented as the images are.
        boxes: `[B,N,6]` of the images before augmentation, see `Prediction`.
    """

    classes: Tensor | None
    masks: Tensor | None
    boxes: Tensor | None


@dataclass(frozen=True, kw_only=True)
class DiscriminatorContext(StepContext):
    """A micro-batch in the discriminator's step, with the generated samples.

    Attributes:
        pseudo: predictions of the averaged discriminator for self-training; `None` without it, and early in the run.
        fake: generated canvases as the discriminator sees them, without gradients; `None` if the run does not generate.
        pair_images: `[N,C,H,W]` standard normal, one image of noise per pair.
        observe_logit_gap: takes `[B]` real minus generated logits, detached; the adaptive augmentation follows them.
    """

    fake: Canvas | None
    pair_images: Tensor
    pseudo: PseudoLabels | None = None
    observe_logit_gap: Callable[[Tensor], None] = _ignore


@dataclass(frozen=True, kw_only=True)
class GeneratorContext(StepContext):
    """A micro-batch in the generator's step, with the generated samples.

    Attributes:
        fake: generated canvases, augmented, with their logits; the discriminator sees their masks and boxes hardened.
        fake_unaugmented: `[B]` bool: generated samples that the augmentation left unchanged.
        real_features: the trunk's levels of the real rows, without gradients.
        real_judged: `[B,C,h,w]`: the lowest level by which the real rows are judged, without gradients.
        counts: also of generated samples in the global batch: "unaugmented", the image-only ones that the augmentation
            left unchanged; "given NAME", those of them with that condition.
    """

    fake: Canvas
    fake_unaugmented: Tensor
    real_features: list[Tensor]
    real_judged: Tensor


class Task:
    """One task: everything specific to it. A subclass is one file that registers itself in `config.TASKS`.

    A loss is computed even if no row of this worker has its label; it is 0 then. So every worker has a gradient for
    every parameter: workers that reduce different sets of gradients wait for each other forever.

    Class attributes:
        Settings: the task's section of the configuration. Its `needs` names the component that the task learns from,
            its `metric` the metric that measures it.
        dense: whether the task uses the U-Net decoder.
        requests_canvases: whether the task requests canvases from the generator (`generator_request`).
        reads: tasks whose predictions this task takes in, where they are switched on.

    Attributes:
        sources: the tasks of `reads` that are switched on, by name.
    """

    Settings: ClassVar[type[TaskSettings]] = TaskSettings
    dense: ClassVar[bool] = False
    requests_canvases: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()

    def __init__(self, name: str, settings: Any, sizes: TaskSizes) -> None:
        """Raise `ConfigError` if the settings do not work with these sizes."""
        self.name = name
        self.settings = settings
        self.sizes = sizes
        self.sources: dict[str, Task] = {}

    def connect(self, tasks: Mapping[str, "Task"]) -> None:
        """Take in the predictions of the tasks in `reads` that are switched on; called before `head`."""
        if not isinstance(self.settings, ReaderSettings) or self.settings.use_predictions:
            self.sources = {name: tasks[name] for name in self.reads if name in tasks}

    def class_prediction(self, discriminator: Discriminator, levels: list[Tensor]) -> Tensor:
        """Return what other tasks read of this one: `[B,K]` log-probabilities of the classes being in the image."""
        raise NotImplementedError(f"task {self.name!r} predicts no classes that another could read")

    def prediction_reader(self, own: Sequence[str]) -> PredictionReader:
        """Build the layer that adds the sources' predictions to logits of the classes `own`."""
        return PredictionReader(own, dict.fromkeys(self.sources, self.sizes.class_names))

    @torch.no_grad()
    def source_predictions(self, discriminator: Discriminator, levels: list[Tensor]) -> dict[str, Tensor]:
        """Return what the sources predict, by name: `[B,K]`, see `readable`. No gradient reaches them from here."""
        return {
            name: readable(task.class_prediction(discriminator, levels).float()) for name, task in self.sources.items()
        }

    def head(self) -> nn.Module | None:
        """Build the task's layers on top of the discriminator's trunk or decoder."""
        return None

    def canvas_spec(self, spec: CanvasSpec) -> CanvasSpec:
        """Return what the canvas holds with this task, given what it holds without."""
        return spec

    def condition_spec(self, spec: ConditionSpec) -> ConditionSpec:
        """Return what the generator is conditioned on with this task, given what it is conditioned on without."""
        return spec

    def discriminator_canvases(self, context: DiscriminatorContext) -> Canvas | None:
        """Return extra canvases for the trunk, generated without gradients; they become `TaskFeatures.submitted`."""
        return None

    def discriminator_losses(self, context: DiscriminatorContext, features: TaskFeatures) -> LossDict:
        """Return losses that train the discriminator module, before the task's weight."""
        return {}

    def generator_request(self, context: StepContext, real_features: list[Tensor]) -> tuple[Tensor, Condition] | None:
        """Return latents and conditions of canvases that the generator's step should generate for this task.

        Args:
            context: before anything is generated.
            real_features: the trunk's levels of the real rows, without gradients.
        """
        return None

    def discriminator_part(self, context: GeneratorContext, canvas: Canvas) -> Canvas | None:
        """Return the part of the requested canvas for the frozen trunk; it becomes `TaskFeatures.submitted`."""
        return None

    def generator_losses(self, context: GeneratorContext, features: TaskFeatures) -> LossDict:
        """Return losses that train the generator through the frozen discriminator, before the task's weight."""
        return {}

    def canvas_losses(self, context: GeneratorContext, canvas: Canvas) -> LossDict:
        """Return losses on the requested canvas itself, before the task's weight."""
        return {}

    def predict(self, discriminator: Discriminator, levels: list[Tensor], prediction: Prediction) -> None:
        """Add the task's predictions to `prediction`.

        Args:
            levels: the trunk's features of images alone, lowest resolution first.
        """
