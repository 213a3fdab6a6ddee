"""What a metric is, and the registry that one file a metric fills."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from mtgen.evaluation.cache import CacheScope
from mtgen.registry import Registry
from mtgen.schema import Batch, Canvas, DatasetCard, Prediction
from mtgen.tracking.journal import EVALUATION_PREFIX

if TYPE_CHECKING:
    from mtgen.evaluation.features import FeatureSets
    from mtgen.evaluation.reference_models import ReferenceModels

StageProgress = Callable[[str, int, int | None], None]
"""Called with a stage's name, what is done of it, and its total where that is known."""


Better = Literal["higher", "lower"] | None
"""Which value of a number is better; `None`: neither, since the best lies between, or it says nothing of the run."""


class Skipped(Exception):
    """A metric that cannot be had from this run or data set; the message is the reason."""


@dataclass(frozen=True)
class MetricContext:
    """What a metric may have to know before the first sample.

    Attributes:
        card: the data set that the model was trained on.
        samples: how many images are generated.
        seed: of everything random.
        device: where the model computes.
        progress: to be told of work that takes long.
        conditions: modalities that images can be asked for by.
        translates: what the domains are that the model translates between ("domain": data sets, "class"); `None`: it does not.
        real: where networks lie that are trained on the real training images, for every run on the same data.
        own: where those lie that are trained for this evaluation alone.
    """

    card: DatasetCard
    samples: int
    seed: int = 0
    device: torch.device = torch.device("cpu")
    progress: StageProgress = lambda stage, done, total: None
    conditions: tuple[str, ...] = ()
    translates: str | None = None
    real: CacheScope = CacheScope()
    own: CacheScope = CacheScope()


class Metric:
    """Collects what it needs of its streams, in memory that does not grow with their images, and ends in named numbers.

    The streams come in this order: real training images, generated canvases, the real test split and what is made of it. Any
    method may raise `Skipped`: the metric is then left out, and the reason is reported.

    Attributes:
        numbers: the names of all that it gives, where NAME stands for the extractor's, and which value of each is better.
        quick: whether it is cheap enough to be computed again and again during training.
        on_request: whether it is computed only when it is asked for.
        reconstructs: whether it reads reconstructions.
        conditions: modalities for which it reads `update_condition`.
        independent: whether it reads `reference_models`.
        compared: the streams whose features it compares: "train", "generated", "test".
        reference_models: independent readers, trained on the training split; there for metrics that are `independent`.
        features: of the streams in `compared`, complete when `compute` is called.
    """

    numbers: ClassVar[dict[str, Better]] = {}
    quick = True
    on_request = False
    reconstructs = False
    conditions: ClassVar[tuple[str, ...]] = ()
    independent = False
    compared: ClassVar[tuple[str, ...]] = ()
    reference_models: "ReferenceModels"
    features: "FeatureSets"

    def __init__(self, setting: MetricContext) -> None:
        self.setting = setting

    def update_train(self, batch: Batch) -> None:
        """Take in a part of the real training split."""

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        """Take in generated canvases, the classes `[B]` that were asked for, and what the model reads in the images."""

    def update_real(self, batch: Batch, prediction: Prediction, reconstruction: Canvas | None) -> None:
        """Take in a part of the real test split, and what the model reads in it."""

    def update_reconstructed(self, features: Tensor, rebuilt: Tensor) -> None:
        """Take in the features `[B,D]` of test images and those of their reconstructions."""

    def update_condition(self, name: str, batch: Batch, canvas: Canvas) -> None:
        """Take in test samples that have a modality, and what the model draws when it is asked by their modality `name` alone."""

    def update_shared(self, batch: Batch, image: Tensor, asked: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Take in test samples in the shared space: images `[B,d]`, and each modality's vectors `[B,d]` and which are there, `[B]`."""

    def update_translation(self, to: int, batch: Batch, canvas: Canvas) -> None:
        """Take in test samples of other domains, and their images as the model translates them into the domain `to`."""

    def compute(self) -> dict[str, float]:
        """The numbers, by name."""
        raise NotImplementedError

    def collected(self) -> dict[str, Any]:
        """Everything that it has taken in, for an evaluation that goes on later; see `mtgen.evaluation.serialization`."""
        return {name: value for name, value in vars(self).items() if name not in _NOT_COLLECTED}


_NOT_COLLECTED = {"setting", "reference_models", "features", "reader"}
"""What metrics share, and what is trained again, or comes from its shelf."""

METRICS: Registry[type[Metric]] = Registry("metric", "mtgen.evaluation.metrics")
"""Every metric, by the name of its (first) number."""


def evaluated(number: str) -> str:
    """What a number of `mtgen evaluate` is called in a run's journal: `evaluation/cas`; that of real images is `evaluation/real_cas`."""
    group, _, short = number.partition("/")
    return f"{EVALUATION_PREFIX}{'real_' if group == 'real' else ''}{short}"


def better(number: str) -> Better:
    """Which value of a number in a run's journal is better, as its metric says; `None` also where no metric has it."""
    for metric in map(METRICS.__getitem__, METRICS):
        for name, value in metric.numbers.items():
            if any(re.fullmatch(known.replace("NAME", r"\w+"), number) for known in (name, evaluated(name))):
                return value
    return None


def asked_classes(setting: MetricContext) -> int:
    """How many classes images are asked for by; `Skipped` where they are not: what is drawn is then of no class that is known."""
    required_condition(setting, "class")
    return required_classes(setting.card)


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


def required_logits(logits: Tensor | None, what: str) -> Tensor:
    """The logits, which are there unless the run does not read `what`: then `Skipped`."""
    if logits is None:
        raise Skipped(f"the run does not read {what}")
    return logits


def required_condition(setting: MetricContext, name: str) -> None:
    """`Skipped` where the model cannot be asked by a modality."""
    if name not in setting.conditions:
        raise Skipped(f"the run has no condition {name!r}")


def share(right: int, total: int, what: str) -> float:
    """right / total; `Skipped` where there was nothing to count."""
    if not total:
        raise Skipped(f"no {what}")
    return right / total
