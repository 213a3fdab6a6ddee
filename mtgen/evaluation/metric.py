"""The base class of metrics, and the registry that is filled by one file per metric."""

import re
from typing import ClassVar, Literal, TypeVar

from torch import Tensor

from mtgen.evaluation.base import MetricContext, Stream
from mtgen.evaluation.collectors.base import Collector, State
from mtgen.evaluation.collectors.features import FeatureSets
from mtgen.evaluation.reference.models import ReferenceModels
from mtgen.registry import Registry
from mtgen.schema import Batch, Canvas, Prediction
from mtgen.tracking.journal import EVALUATION_PREFIX, snapshot_name

Better = Literal["higher", "lower"] | None
"""Which values of a number are better; `None`: neither, or the number does not describe the run."""

C = TypeVar("C", bound=Collector)


class Metric:
    """Takes in one or more streams, in memory that does not grow with the number of images, and computes named numbers.

    A metric declares its streams and defines the update method of each. Its state is held in collectors, registered by
    `add_state`, so that an interrupted evaluation resumes with it.

    The streams come in this order: real training samples, generated canvases, the real test split with all outputs of
    the model on it. Any method may raise `Skipped`: the metric is then left out, and the reason is reported.

    Attributes:
        numbers: name of every number that it computes -> which values are better. `NAME` stands for the name of the
            extractor.
        streams: the streams that it takes in; only their update methods are called.
        compares: the streams ("train", "generated", "test") whose features it compares.
        conditions: the modalities of the stream "conditions".
        quick: whether it is cheap enough for the snapshots of a run that trains.
        on_request: whether it is only computed when it is named.
        needs_reference_models: whether it uses `reference_models`.
        reference_models: networks trained on real training images; ready where `needs_reference_models` is set.
        features: features of the streams in `compares`; complete when `compute` is called.
    """

    numbers: ClassVar[dict[str, Better]] = {}
    streams: ClassVar[tuple[Stream, ...]] = ()
    compares: ClassVar[tuple[Stream, ...]] = ()
    conditions: ClassVar[tuple[str, ...]] = ()
    quick = True
    on_request = False
    needs_reference_models = False
    reference_models: ReferenceModels
    features: FeatureSets

    def __init__(self, context: MetricContext) -> None:
        self.context = context
        self._collectors: dict[str, Collector] = {}

    def add_state(self, name: str, collector: C) -> C:
        """Register a collector as part of the metric's state; returns it."""
        self._collectors[name] = collector
        return collector

    def state_dict(self) -> State:
        """The state of every registered collector, by name."""
        return {name: collector.state_dict() for name, collector in self._collectors.items()}

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        for name, collector in self._collectors.items():
            collector.load_state_dict(state[name])

    def update_train(self, batch: Batch) -> None:
        """Stream "train": take in real training samples."""
        raise self._undefined(Stream.TRAIN, "update_train")

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        """Stream "generated": take in canvases, the classes `[B]` they are conditioned on, and predictions on them."""
        raise self._undefined(Stream.GENERATED, "update_generated")

    def update_test(self, batch: Batch, prediction: Prediction) -> None:
        """Stream "test": take in real test samples, and predictions on their images."""
        raise self._undefined(Stream.TEST, "update_test")

    def update_reconstruction(self, batch: Batch, reconstruction: Canvas | None) -> None:
        """Stream "reconstructions": take in test samples and reconstructions; `None` where the run has no posterior."""
        raise self._undefined(Stream.RECONSTRUCTIONS, "update_reconstruction")

    def update_reconstruction_features(self, real: Tensor, reconstructed: Tensor) -> None:
        """Stream "reconstruction_features": take in features `[B,D]` of test images and of their reconstructions."""
        raise self._undefined(Stream.RECONSTRUCTION_FEATURES, "update_reconstruction_features")

    def update_condition(self, name: str, batch: Batch, canvas: Canvas) -> None:
        """Stream "conditions": take in test samples with the modality `name`, and canvases conditioned on it alone."""
        raise self._undefined(Stream.CONDITIONS, "update_condition")

    def update_embeddings(self, batch: Batch, image: Tensor, modalities: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Stream "embeddings": take in test samples with embeddings of their images `[B,d]` and of each modality.

        `modalities` maps a name to the embeddings `[B,d]` and to which samples have the modality, `[B]` bool.
        """
        raise self._undefined(Stream.EMBEDDINGS, "update_embeddings")

    def update_translation(self, domain: int, batch: Batch, canvas: Canvas) -> None:
        """Stream "translations": take in test samples of other domains, and their translations into `domain`."""
        raise self._undefined(Stream.TRANSLATIONS, "update_translation")

    def compute(self) -> dict[str, float]:
        """The numbers, by name."""
        raise NotImplementedError(f"{type(self).__name__}: define compute()")

    def check_declarations(self) -> None:
        """Check that the class attributes fit together.

        Raises:
            TypeError: they do not; names the attribute to change.
        """
        name = type(self).__name__
        if not self.streams and not self.compares:
            raise TypeError(
                f"{name}.streams: empty, so nothing is measured; name the streams that it takes in "
                f"({', '.join(f'Stream.{stream.name}' for stream in Stream)}), or those in compares"
            )
        if bool(self.conditions) != (Stream.CONDITIONS in self.streams):
            raise TypeError(f"{name}.conditions: goes with Stream.CONDITIONS in {name}.streams; set both or neither")
        if Stream.RECONSTRUCTION_FEATURES in self.streams and Stream.TEST not in self.compares:
            raise TypeError(f"{name}.compares: Stream.RECONSTRUCTION_FEATURES needs Stream.TEST in it; add it")
        if self.streams and not self._collectors:
            raise TypeError(
                f"{name}: has no state, so it could not be resumed; register its collectors with add_state()"
            )

    def _undefined(self, stream: Stream, method: str) -> NotImplementedError:
        name = type(self).__name__
        return NotImplementedError(f"{name}.streams: has Stream.{stream.name}, but {name} does not define {method}()")


METRICS: Registry[type[Metric]] = Registry("metric", "mtgen.evaluation.metrics")
"""Every metric, by the name of its (first) number."""


def journal_name(number: str) -> str:
    """The name of a number in a run's journal, such as `evaluation/cas`; `evaluation/real_cas` for `real/cas`."""
    group, _, short = number.partition("/")
    return f"{EVALUATION_PREFIX}{'real_' if group == 'real' else ''}{short}"


def better(number: str) -> Better:
    """Which values of a number in a run's journal are better; `None` also for a number of no metric."""
    for metric in map(METRICS.__getitem__, METRICS):
        for name, value in metric.numbers.items():
            names = (name, snapshot_name(name), journal_name(name))
            if any(re.fullmatch(known.replace("NAME", r"\w+"), number) for known in names):
                return value
    return None
