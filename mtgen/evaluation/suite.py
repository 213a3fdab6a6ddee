"""One pass over real and one over generated data feed every metric."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mtgen.config import Extractor
from mtgen.errors import ConfigError
from mtgen.evaluation.extractor import Extract, FileExtractor, SmallCNN
from mtgen.evaluation.features import Features, FeatureSets
from mtgen.evaluation.metric import METRICS, Metric, Progress, Setting, Skipped
from mtgen.evaluation.store import Key, Store
from mtgen.evaluation.work import Gather, Generated, Tested, Wanted, Work
from mtgen.evaluation.yardsticks import Yardsticks
from mtgen.registry import suggest
from mtgen.sampling import Model
from mtgen.schema import Batch

QUICK_SAMPLES = 500
"""Generated images for the quick metrics: 50 a class of ten, so that a deviation within a class is right to 1 %."""


STAGES = {
    "read": "read the training split",
    "seen": "features of the training split",
    "generated": "generate",
    "tested": "read the test split",
}
"""`Work`'s stages, as progress names them."""


class Report(dict[str, float]):
    """Numbers by name, such as `test/class_accuracy`.

    Attributes:
        skipped: why a metric is not among them, by name.
        closest: see `FeatureSets.closest`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.skipped: dict[str, str] = {}
        self.closest: list[tuple[int, int, float]] = []


@dataclass(frozen=True)
class RealFeatures:
    """Where features of the training split may have been stored by an earlier evaluation, or by one of another run.

    Attributes:
        fingerprint, split, look: see `mtgen.evaluation.store.Key`.
    """

    store: Store
    fingerprint: str
    split: str
    look: str

    def key(self, extract: Extract) -> Key:
        """What they are stored under."""
        return Key(self.fingerprint, self.split, self.look, extract.digest)


class _Metrics:
    """The metrics that are being fed; one that raises `Skipped` leaves, and the report says why."""

    def __init__(self, names: list[str], setting: Setting) -> None:
        self.report = Report()
        self.active: dict[str, Metric] = {}
        for name in names:
            with self._unless_skipped(name):
                self.active[name] = METRICS[name](setting)
        self.yardsticks = Yardsticks(setting)
        self.features, self.small = FeatureSets(""), False
        for metric in self.active.values():
            metric.yardsticks, metric.features = self.yardsticks, self.features

    def compare_by(self, extract: Extract | None) -> Extract | None:
        """Let distributions be compared by an extractor's features, or by the small network's; where that cannot be trained, by none."""
        if self.small:
            try:
                extract = SmallCNN(self.yardsticks.classifier())
            except Skipped as reason:
                self._leave([name for name, metric in self.active.items() if metric.compared], f"{reason}; or name an evaluate.extractor")
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
        if self.independent:
            self.yardsticks.update_train(batch)
        self._feed(lambda metric: metric.update_train(batch))

    def generated(self, part: Generated) -> None:
        if part.features is not None:
            self.features.update("generated", part.features, part.position)
        self._feed(lambda metric: metric.update_generated(part.canvas, part.labels, part.prediction))

    def tested(self, part: Tested) -> None:
        if part.features is not None:
            self.features.update("test", part.features, part.batch.position)
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

    def compute(self) -> Report:
        for name, metric in list(self.active.items()):
            with self._unless_skipped(name):
                self.report.update(metric.compute())
        self.report.closest = self.features.closest
        return self.report

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

    def wanted_of_test(self, extract: Extract | None) -> Wanted:
        """What the metrics take in of the test split; `Wanted()`: nothing."""
        active = self.active.values()
        return Wanted(
            predictions=self.reads(Metric.update_real),
            reconstructions=any(metric.reconstructs for metric in active),
            conditions=tuple(dict.fromkeys(name for metric in active for name in metric.conditions)),
            shared=self.reads(Metric.update_shared),
            translations=self.reads(Metric.update_translation),
            extract=extract if self.compares("test") else None,
        )


def check_names(metrics: list[str]) -> None:
    """Raises `ConfigError` for the name of a metric that does not exist; names the nearest, and all that there are."""
    for name in metrics:
        if name not in METRICS:
            raise ConfigError(f"{name}: unknown metric; {suggest(name, METRICS.names())}")


def _chosen(metrics: list[str] | None, quick: bool, reference: bool) -> list[str]:
    check_names(metrics or [])
    if metrics is None:
        metrics = [name for name in METRICS if reference or not METRICS[name].on_request]
    return [name for name in metrics if METRICS[name].quick or not quick]


def evaluate(
    model: Model,
    real_test: Iterable[Batch],
    real_train: Iterable[Batch] | None,
    *,
    samples: int,
    seed: int,
    metrics: list[str] | None = None,
    quick: bool = False,
    reference: bool = False,
    batch_size: int = 100,
    extractor: Extractor | None = None,
    stored: RealFeatures | None = None,
    gather: Gather | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Report:
    """Measure a model; equal seeds give equal numbers.

    Args:
        real_test: the test split, once.
        real_train: the training split, gone through twice: what diversity and distributions are compared with, and what `reference`
            trains on.
        samples: how many images are generated, the classes in turn.
        metrics: names out of `METRICS`; default: all that are not made on request.
        quick: leave out what takes long, and generate `QUICK_SAMPLES` at most: for use during training.
        reference: also what real training images in the place of generated ones would reach (`real/cas`).
        extractor: whose features distributions are compared by; default: the small network's (`SmallCNN`).
        stored: where features of the training split are kept.
        gather: does the work; default: this process. Metrics are fed here in either case.

    Returns:
        The numbers; what could not be had is named in `skipped`, with the reason.

    Raises:
        ConfigError: for the name of a metric that does not exist, or an extractor that cannot be used.
    """
    names = _chosen(metrics, quick, reference)
    samples = min(samples, QUICK_SAMPLES) if quick else samples
    setting = Setting(model.card, samples, seed, model.device, progress, tuple(model.conditions), model.translates)
    fed = _Metrics(names, setting)
    stages = _Stages(gather or Work(model, real_test, real_train, samples=samples, seed=seed, batch_size=batch_size).stage, progress)
    extract = FileExtractor(extractor, model.device) if extractor and fed.compares() else None  # what is wrong with it is said first
    fed.small = fed.compares() and extract is None

    if real_train is not None and (fed.reads(Metric.update_train) or fed.independent):
        stages.feed("read", Wanted(), fed.read)
    used = fed.compare_by(extract)
    if used is not None and fed.compares("train") and real_train is not None:
        fed.features.sets |= _train_features(stages, used, stored)
    if fed.reads(Metric.update_generated) or fed.compares("generated"):
        wanted = Wanted(predictions=fed.reads(Metric.update_generated), extract=used if fed.compares("generated") else None)
        stages.feed("generated", wanted, fed.generated, samples)
    if (wanted := fed.wanted_of_test(used)) != Wanted():
        stages.feed("tested", wanted, fed.tested)
    return fed.compute()


class _Stages:
    """Goes through the stages of the work, and tells how far it is."""

    def __init__(self, gather: Gather, progress: Progress) -> None:
        self.gather, self.progress = gather, progress

    def feed(self, stage: str, wanted: Wanted, take: Callable[[Any], None], total: int | None = None) -> None:
        """Hand every part of a stage on, in order."""
        done = 0
        for part in self.gather(stage, wanted):
            take(part)
            self.progress(STAGES[stage], done := done + len(part), total)


def _train_features(stages: _Stages, extract: Extract, stored: RealFeatures | None) -> dict[str, Features]:
    """Features of the training split: those that are stored, or computed and stored."""
    if stored is not None and (found := stored.store.get(stored.key(extract))) is not None:
        return {"train": found}
    made = FeatureSets(extract.name)
    stages.feed("seen", Wanted(extract=extract), lambda part: made.update("train", part.features, part.position))
    if stored is not None and made.sets:
        stored.store.put(stored.key(extract), made.sets["train"])
    return made.sets
