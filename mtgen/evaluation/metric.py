"""What a metric is, and the registry that one file a metric fills."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mtgen.evaluation.judges import Judges
from mtgen.evaluation.skipped import Skipped as Skipped
from mtgen.registry import Registry
from mtgen.schema import Batch, Canvas, DatasetCard, Prediction

Progress = Callable[[str, int, int | None], None]
"""Called with a stage's name, what is done of it, and its total where that is known."""


@dataclass(frozen=True)
class Setting:
    """What a metric may have to know before the first sample.

    Attributes:
        card: the data set that the model was trained on.
        samples: how many images are generated.
        seed: of everything random.
        device: where the model computes.
        progress: to be told of work that takes long.
        conditions: the modalities that the model can be asked for by.
        generates: whether the model draws at all.
        predict: what the model reads in images.
        translates: what its domains are, "domain" or "class"; `None` where it does not translate.
    """

    card: DatasetCard
    samples: int
    seed: int = 0
    device: torch.device = torch.device("cpu")
    progress: Progress = lambda stage, done, total: None
    conditions: tuple[str, ...] = ("class",)
    generates: bool = True
    predict: Callable[[Tensor], Prediction] | None = None
    translates: str | None = None

    @cached_property
    def judges(self) -> Judges:
        """The independent networks of this evaluation."""
        return Judges(self.card, self.seed, self.device, self.progress)


class Metric:
    """Collects what it needs of three streams, in memory that does not grow with them, and ends in named numbers.

    The streams come in this order: real training images, generated canvases, the real test split, and beside each part of it
    what the model makes of it. Any method may raise
    `Skipped`: the metric is then left out, and the reason is reported.

    Attributes:
        quick: whether it is cheap enough to be computed again and again during training.
        on_request: whether it is computed only when it is asked for.
        reconstructs: whether it reads reconstructions.
        asks: the modalities by which alone it wants images to be drawn, of test samples.
    """

    quick = True
    on_request = False
    reconstructs = False
    asks: tuple[str, ...] = ()

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def update_train(self, batch: Batch) -> None:
        """Take in a part of the real training split."""

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        """Take in generated canvases, the classes `[B]` that were asked for, and what the model reads in the images."""

    def update_real(self, batch: Batch, prediction: Prediction, reconstruction: Canvas | None) -> None:
        """Take in a part of the real test split, and what the model reads in it."""

    def update_conditioned(self, modality: str, batch: Batch, canvas: Canvas) -> None:
        """Take in test samples that have the modality, and what was drawn for it alone; see `asks`."""

    def update_embedded(self, batch: Batch, embedded: dict[str, Tensor]) -> None:
        """Take in a part of the real test split in the shared space.

        `embedded` holds `[B,d]` of length 1: "image", and each modality with a vector, 0 in rows without; "classes" is `[K,d]`.
        """

    def update_translated(self, batch: Batch, target: Tensor, canvas: Canvas) -> None:
        """Take in test samples, the domains `[B]` that they were to be drawn anew in, and what was drawn."""

    def compute(self) -> dict[str, float]:
        """The numbers, by name."""
        raise NotImplementedError


METRICS: Registry[type[Metric]] = Registry("metric", "mtgen.evaluation.metrics")
"""Every metric, by the name of its (first) number."""


def required_classes(card: DatasetCard) -> int:
    """How many classes the data set has; `Skipped` where it names none."""
    if not card.classes:
        raise Skipped("the data set names no classes")
    return len(card.classes)


def required_mask_classes(card: DatasetCard) -> int:
    """How many mask classes the data set has; `Skipped` where it names none."""
    if not card.mask_classes:
        raise Skipped("the data set names no mask classes")
    return len(card.mask_classes)


def required_condition(setting: Setting, modality: str) -> None:
    """`Skipped` where the run does not draw, or not by that modality."""
    if not setting.generates:
        raise Skipped("the run does not generate images")
    if modality not in setting.conditions:
        raise Skipped(f"the run was not trained on the condition {modality!r}")


def required_logits(logits: Tensor | None, what: str) -> Tensor:
    """The logits, which are there unless the run does not read `what`: then `Skipped`."""
    if logits is None:
        raise Skipped(f"the run does not read {what}")
    return logits


def share(right: int, total: int, what: str) -> float:
    """right / total; `Skipped` where there was nothing to count."""
    if not total:
        raise Skipped(f"no {what}")
    return right / total
