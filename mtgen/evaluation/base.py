"""What every part of an evaluation shares: the streams, the context of a metric, and the reasons to skip it."""

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from mtgen.evaluation.cache import NO_CACHE, CacheScope
from mtgen.schema import DatasetCard
from mtgen.utils.progress_callback import StageProgress, ignore_stage


class Stream(StrEnum):
    """What a metric can take in, see `mtgen.evaluation.metric.Metric`."""

    TRAIN = "train"
    """Real training samples."""
    GENERATED = "generated"
    """Generated canvases, and the model's predictions on them."""
    TEST = "test"
    """Real test samples, and the model's predictions on them."""
    RECONSTRUCTIONS = "reconstructions"
    """Real test samples with their reconstructions."""
    RECONSTRUCTION_FEATURES = "reconstruction_features"
    """Features of real test images and of their reconstructions."""
    CONDITIONS = "conditions"
    """Real test samples, and images conditioned on one modality of each."""
    EMBEDDINGS = "embeddings"
    """Real test samples in the shared representation space."""
    TRANSLATIONS = "translations"
    """Real test samples translated into other domains."""


class Skipped(Exception):
    """Raised by a metric that cannot be computed for this run or data set; the message is the reason."""


@dataclass(frozen=True)
class MetricContext:
    """What a metric may need to know before the first sample.

    Attributes:
        card: the data set that the model was trained on.
        samples: number of generated images.
        seed: seed of every random number of the evaluation.
        device: the model's device.
        progress: called during long computations.
        conditions: modalities that the model can be conditioned on.
        translates: the kind of domains that the model translates between ("domain": data sets, "class"), or `None`.
        data_cache: for what depends on the data set alone, shared by all runs on it.
        run_cache: for what belongs to this evaluation alone.
    """

    card: DatasetCard
    samples: int
    seed: int = 0
    device: torch.device = torch.device("cpu")
    progress: StageProgress = ignore_stage
    conditions: tuple[str, ...] = ()
    translates: str | None = None
    data_cache: CacheScope = NO_CACHE
    run_cache: CacheScope = NO_CACHE


def required_classes(card: DatasetCard) -> int:
    """The number of classes; `Skipped` where the data set names none."""
    if not card.classes:
        raise Skipped("the data set names no classes")
    return len(card.classes)


def required_mask_classes(card: DatasetCard) -> int:
    """The number of mask classes; `Skipped` where the data set names none."""
    if not card.mask_classes:
        raise Skipped("the data set names no mask classes")
    return len(card.mask_classes)


def required_condition(context: MetricContext, name: str) -> None:
    """`Skipped` where the model cannot be conditioned on a modality."""
    if name not in context.conditions:
        raise Skipped(f"the run has no condition {name!r}")


def required_conditioned_classes(context: MetricContext) -> int:
    """The number of classes; `Skipped` where the model is not conditioned on them: its images have no known class."""
    required_condition(context, "class")
    return required_classes(context.card)


def required_logits(logits: Tensor | None, what: str) -> Tensor:
    """The logits; `Skipped` where the run does not predict `what`."""
    if logits is None:
        raise Skipped(f"the run does not predict {what}")
    return logits
