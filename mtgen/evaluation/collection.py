"""The metrics of an evaluation, updated together, and their report."""

from collections.abc import Iterator
from contextlib import contextmanager

from mtgen.evaluation.base import MetricContext, Skipped, Stream
from mtgen.evaluation.collectors.base import State
from mtgen.evaluation.collectors.features import FeatureSets
from mtgen.evaluation.extractor import FeatureExtractor, SmallCNN
from mtgen.evaluation.metric import METRICS, Metric
from mtgen.evaluation.reference.models import ReferenceModels
from mtgen.evaluation.streams import GeneratedPart, RequestedOutputs, Stage, StreamPart, TestPart, TrainFeatures
from mtgen.schema import Batch

TEST_STREAMS = (
    Stream.TEST,
    Stream.RECONSTRUCTIONS,
    Stream.RECONSTRUCTION_FEATURES,
    Stream.CONDITIONS,
    Stream.EMBEDDINGS,
    Stream.TRANSLATIONS,
)
"""The streams of the stage "test"."""


class MetricReport(dict[str, float]):
    """Numbers by name, such as `test/class_accuracy`.

    Attributes:
        skipped: name of every metric that could not be computed -> the reason.
        closest: see `FeatureSets.closest`.
        resumed: number of images that an interrupted evaluation had already taken in.
    """

    def __init__(self) -> None:
        super().__init__()
        self.skipped: dict[str, str] = {}
        self.closest: list[tuple[int, int, float]] = []
        self.resumed = 0


class MetricCollection:
    """The metrics of an evaluation. One that raises `Skipped` is removed, and the report gives the reason.

    Args:
        names: names out of `METRICS`.
        extractor: its features are compared; default: those of `SmallCNN`, which `prepare_extractor` trains.

    Attributes:
        report: filled by `compute`.
        features: features of the streams that any metric compares.
    """

    def __init__(self, names: list[str], context: MetricContext, extractor: FeatureExtractor | None = None) -> None:
        self.report = MetricReport()
        self.features = FeatureSets("")
        self._reference_models = ReferenceModels(context)
        self._active: dict[str, Metric] = {}
        for name in names:
            with self._skipping(name):
                metric = METRICS[name](context)
                metric.check_declarations()
                metric.reference_models = self._reference_models
                metric.features = self.features
                self._active[name] = metric
        self._extractor = extractor
        self._uses_small_cnn = extractor is None and any(metric.compares for metric in self._active.values())

    @contextmanager
    def _skipping(self, name: str) -> Iterator[None]:
        """Remove a metric that raises `Skipped`."""
        try:
            yield
        except Skipped as reason:
            self._remove(name, str(reason))

    def _remove(self, name: str, reason: str) -> None:
        self.report.skipped[name] = reason
        self._active.pop(name, None)

    def prepare_extractor(self) -> None:
        """Train the extractor if none was given; if that is not possible, remove the metrics that compare features."""
        if self._uses_small_cnn:
            try:
                self._extractor = SmallCNN(self._reference_models.classifier())
            except Skipped as reason:
                for name in [name for name, metric in self._active.items() if metric.compares]:
                    self._remove(name, f"{reason}; or name an evaluate.extractor")
        if self._extractor is not None:
            self.features.name = self._extractor.name

    def requested_outputs(self, stage: Stage) -> RequestedOutputs | None:
        """The outputs of a stage that the metrics need; `None`: the stage is not needed at all."""
        match stage:
            case Stage.TRAIN:
                needed = self._reads(Stream.TRAIN) or self._needs_reference_models
                return RequestedOutputs() if needed else None
            case Stage.TRAIN_FEATURES:
                extractor = self._extractor_for(Stream.TRAIN)
                return None if extractor is None else RequestedOutputs(extractor=extractor)
            case Stage.GENERATED:
                extractor, reads = self._extractor_for(Stream.GENERATED), self._reads(Stream.GENERATED)
                return RequestedOutputs(predictions=reads, extractor=extractor) if reads or extractor else None
            case Stage.TEST:
                extractor = self._extractor_for(Stream.TEST)
                if extractor is None and not any(map(self._reads, TEST_STREAMS)):
                    return None
                return RequestedOutputs(
                    predictions=self._reads(Stream.TEST),
                    reconstructions=self._reads(Stream.RECONSTRUCTIONS) or self._reads(Stream.RECONSTRUCTION_FEATURES),
                    reconstruction_features=self._reads(Stream.RECONSTRUCTION_FEATURES),
                    conditions=tuple(
                        dict.fromkeys(name for metric in self._active.values() for name in metric.conditions)
                    ),
                    embeddings=self._reads(Stream.EMBEDDINGS),
                    translations=self._reads(Stream.TRANSLATIONS),
                    extractor=extractor,
                )

    def _reads(self, stream: Stream) -> bool:
        return any(stream in metric.streams for metric in self._active.values())

    def _extractor_for(self, stream: Stream) -> FeatureExtractor | None:
        """The extractor where any metric compares features of the stream."""
        compared = any(stream in metric.compares for metric in self._active.values())
        return self._extractor if compared else None

    @property
    def _needs_reference_models(self) -> bool:
        return self._uses_small_cnn or any(metric.needs_reference_models for metric in self._active.values())

    def update(self, part: StreamPart) -> None:
        """Take in a part of any stage."""
        match part:
            case Batch():
                self._update_train(part)
            case TrainFeatures():
                self.features.update(Stream.TRAIN, part.features, part.position)
            case GeneratedPart():
                self._update_generated(part)
            case TestPart():
                self._update_test(part)

    def _update_train(self, batch: Batch) -> None:
        if self._needs_reference_models:
            self._reference_models.update_train(batch)
        for name, metric in self._readers(Stream.TRAIN):
            with self._skipping(name):
                metric.update_train(batch)

    def _update_generated(self, part: GeneratedPart) -> None:
        if part.features is not None:
            self.features.update(Stream.GENERATED, part.features, part.position)
        for name, metric in self._readers(Stream.GENERATED):
            with self._skipping(name):
                metric.update_generated(part.canvas, part.labels, part.prediction)

    def _update_test(self, part: TestPart) -> None:
        if part.features is not None:
            self.features.update(Stream.TEST, part.features, part.batch.position)
        for name, metric in self._readers(Stream.TEST):
            with self._skipping(name):
                metric.update_test(part.batch, part.prediction)
        for name, metric in self._readers(Stream.RECONSTRUCTIONS):
            with self._skipping(name):
                metric.update_reconstruction(part.batch, part.reconstruction)
        if part.features is not None and part.reconstruction_features is not None:
            for name, metric in self._readers(Stream.RECONSTRUCTION_FEATURES):
                with self._skipping(name):
                    metric.update_reconstruction_features(part.features, part.reconstruction_features)
        for condition in part.conditions:
            for name, metric in self._readers(Stream.CONDITIONS):
                if condition.name in metric.conditions:
                    with self._skipping(name):
                        metric.update_condition(condition.name, condition.batch, condition.canvas)
        if part.embeddings is not None:
            for name, metric in self._readers(Stream.EMBEDDINGS):
                with self._skipping(name):
                    metric.update_embeddings(part.batch, part.embeddings.image, part.embeddings.modalities)
        for translation in part.translations:
            for name, metric in self._readers(Stream.TRANSLATIONS):
                with self._skipping(name):
                    metric.update_translation(translation.domain, translation.batch, translation.canvas)

    def _readers(self, stream: Stream) -> list[tuple[str, Metric]]:
        """The metrics that take in a stream, by name."""
        return [(name, metric) for name, metric in self._active.items() if stream in metric.streams]

    def compute(self) -> MetricReport:
        """The numbers of everything taken in, and the reasons for those that are missing."""
        for name, metric in list(self._active.items()):
            with self._skipping(name):
                self.report.update(metric.compute())
        self.report.closest = self.features.closest
        return self.report

    def state_dict(self, without_features: Stream | None = None) -> State:
        """Everything taken in; the features of one stream can be left out."""
        return {
            "metrics": {name: metric.state_dict() for name, metric in self._active.items()},
            "skipped": self.report.skipped,
            "features": self.features.state_dict(without_features),
            "reference_models": self._reference_models.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` of a collection of the same metrics returned."""
        self._active = {name: metric for name, metric in self._active.items() if name in state["metrics"]}
        for name, metric in self._active.items():
            metric.load_state_dict(state["metrics"][name])
        self.report.skipped |= state["skipped"]
        self.features.load_state_dict(state["features"])
        self._reference_models.load_state_dict(state["reference_models"])
