"""The metrics of an evaluation: fed together, they give one report."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from mtgen.evaluation.extractor import FeatureExtractor, SmallCNN
from mtgen.evaluation.features import FeatureSets
from mtgen.evaluation.metric import METRICS, Metric, MetricContext, Skipped
from mtgen.evaluation.reference_models import ReferenceModels
from mtgen.evaluation.serialization import packed, unpacked
from mtgen.evaluation.streams import GeneratedPart, RequestedOutputs, TestPart
from mtgen.schema import Batch


class MetricReport(dict[str, float]):
    """Numbers by name, such as `test/class_accuracy`.

    Attributes:
        skipped: why a metric is not among them, by name.
        closest: see `FeatureSets.closest`.
        resumed: images that an evaluation which was interrupted had taken in already.
    """

    def __init__(self) -> None:
        super().__init__()
        self.skipped: dict[str, str] = {}
        self.closest: list[tuple[int, int, float]] = []
        self.resumed = 0


class MetricCollection:
    """The metrics that are being fed; one that raises `Skipped` leaves, and the report says why."""

    def __init__(self, names: list[str], setting: MetricContext) -> None:
        self.report = MetricReport()
        self.active: dict[str, Metric] = {}
        for name in names:
            with self._unless_skipped(name):
                self.active[name] = METRICS[name](setting)
        self.reference_models = ReferenceModels(setting)
        self.features = FeatureSets("")
        self.small = False
        for metric in self.active.values():
            metric.reference_models = self.reference_models
            metric.features = self.features

    def compare_by(self, extract: FeatureExtractor | None) -> FeatureExtractor | None:
        """Let distributions be compared by an extractor's features, or by the small network's; where that cannot be trained, by none."""
        if self.small:
            try:
                extract = SmallCNN(self.reference_models.classifier())
            except Skipped as reason:
                self._leave(
                    [name for name, metric in self.active.items() if metric.compared],
                    f"{reason}; or name an evaluate.extractor",
                )
        if extract is not None:
            self.features.name = extract.name
        return extract

    def _leave(self, names: list[str], reason: str) -> None:
        for name in names:
            self.report.skipped[name] = reason
            del self.active[name]

    @contextmanager
    def _unless_skipped(self, name: str) -> Iterator[None]:
        try:
            yield
        except Skipped as reason:
            self.report.skipped[name] = str(reason)
            self.active.pop(name, None)

    def read(self, batch: Batch) -> None:
        """Take in a part of the real training split."""
        if self.independent:
            self.reference_models.update_train(batch)
        self._feed(lambda metric: metric.update_train(batch))

    def generated(self, part: GeneratedPart) -> None:
        """Take in generated images, and what the run reads in them."""
        if part.features is not None:
            self.features.update("generated", part.features, part.position)
        self._feed(lambda metric: metric.update_generated(part.canvas, part.labels, part.prediction))

    def tested(self, part: TestPart) -> None:
        """Take in a part of the real test split, and everything that the run made of it."""
        if part.features is not None:
            self.features.update("test", part.features, part.batch.position)
        if part.rebuilt is not None:
            features, rebuilt = part.rebuilt
            self._feed(lambda metric: metric.update_reconstructed(features, rebuilt))
        self._feed(lambda metric: metric.update_real(part.batch, part.prediction, part.reconstruction))
        for condition, batch, canvas in part.conditions:
            self._feed(lambda metric: metric.update_condition(condition, batch, canvas), condition)  # noqa: B023
        if part.shared is not None:
            image, asked = part.shared
            self._feed(lambda metric: metric.update_shared(part.batch, image, asked))
        for to, batch, canvas in part.translations:
            self._feed(lambda metric: metric.update_translation(to, batch, canvas))  # noqa: B023

    def _feed(self, update: Callable[[Metric], None], condition: str | None = None) -> None:
        """Update all metrics, or those that read a condition."""
        for name, metric in list(self.active.items()):
            if condition is None or condition in metric.conditions:
                with self._unless_skipped(name):
                    update(metric)

    def compute(self) -> MetricReport:
        """The numbers of all that was taken in, and why others are missing."""
        for name, metric in list(self.active.items()):
            with self._unless_skipped(name):
                self.report.update(metric.compute())
        self.report.closest = self.features.closest
        return self.report

    def packed(self, but: tuple[str, ...]) -> tuple[Any, dict[str, Tensor]]:
        """All that was taken in, as JSON and tensors; without the features of some streams."""
        tensors: dict[str, Tensor] = {}
        told = {
            "metrics": {name: metric.collected() for name, metric in self.active.items()},
            "skipped": self.report.skipped,
            "features": {kind: found for kind, found in self.features.sets.items() if kind not in but},
            "domains": self.reference_models.domains,
        }
        return packed(told, tensors), tensors

    def unpack(self, told: Any, tensors: dict[str, Tensor]) -> None:
        """Go on with what `packed` gave."""
        found = unpacked(told, tensors)
        self.active = {name: metric for name, metric in self.active.items() if name in found["metrics"]}
        for name, metric in self.active.items():
            vars(metric).update(found["metrics"][name])
        self.report.skipped |= found["skipped"]
        self.features.sets |= found["features"]
        self.reference_models.domains |= found["domains"]

    def reads(self, stream: Callable[..., None]) -> bool:
        """Whether any metric takes in `stream`, one of `Metric`'s update methods; a stream that none reads is not made."""
        return any(getattr(type(metric), stream.__name__) is not stream for metric in self.active.values())

    @property
    def independent(self) -> bool:
        """Whether the independent readers are wanted, by a metric or as the small extractor."""
        return self.small or any(metric.independent for metric in self.active.values())

    def compares(self, kind: str | None = None) -> bool:
        """Whether any metric compares the features of a stream; `None`: of any."""
        return any(kind in metric.compared if kind else metric.compared for metric in self.active.values())

    def wanted_of_test(self, extract: FeatureExtractor | None) -> RequestedOutputs:
        """What the metrics take in of the test split; `RequestedOutputs()`: nothing."""
        active = self.active.values()
        return RequestedOutputs(
            predictions=self.reads(Metric.update_real),
            reconstructions=any(metric.reconstructs for metric in active),
            rebuilt=self.reads(Metric.update_reconstructed),
            conditions=tuple(dict.fromkeys(name for metric in active for name in metric.conditions)),
            shared=self.reads(Metric.update_shared),
            translations=self.reads(Metric.update_translation),
            extract=extract if self.compares("test") else None,
        )
