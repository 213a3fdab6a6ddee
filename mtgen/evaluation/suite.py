"""One pass over real and one over generated data feed every metric."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mtgen.errors import ConfigError
from mtgen.evaluation.metric import METRICS, Metric, Progress, Setting, Skipped
from mtgen.registry import suggest
from mtgen.sampling import Model, balanced_labels, generate
from mtgen.schema import Batch, Canvas, Prediction, Prompt

QUICK_SAMPLES = 500
"""Generated images for the quick metrics: 50 a class of ten, so that a deviation within a class is right to 1 %."""


class Report(dict[str, float]):
    """Numbers by name, such as `test/class_accuracy`; `skipped` holds, by name, why a metric is not among them."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped: dict[str, str] = {}


class _Metrics:
    """The metrics that are being fed; one that raises `Skipped` leaves, and the report says why."""

    def __init__(self, names: list[str], setting: Setting) -> None:
        self.report = Report()
        self.active: dict[str, Metric] = {}
        for name in names:
            with self._unless_skipped(name):
                self.active[name] = METRICS[name](setting)

    @contextmanager
    def _unless_skipped(self, name: str) -> Iterator[None]:
        try:
            yield
        except Skipped as reason:
            self.report.skipped[name] = str(reason)
            self.active.pop(name, None)

    def update_train(self, batch: Batch) -> None:
        for name, metric in list(self.active.items()):
            with self._unless_skipped(name):
                metric.update_train(batch)

    def update_generated(self, canvas: Canvas, labels: Tensor, prediction: Prediction) -> None:
        for name, metric in list(self.active.items()):
            with self._unless_skipped(name):
                metric.update_generated(canvas, labels, prediction)

    def update_real(self, batch: Batch, prediction: Prediction, reconstruction: Canvas | None) -> None:
        for name, metric in list(self.active.items()):
            with self._unless_skipped(name):
                metric.update_real(batch, prediction, reconstruction)

    def compute(self) -> Report:
        for name, metric in list(self.active.items()):
            with self._unless_skipped(name):
                self.report.update(metric.compute())
        return self.report

    def reads(self, stream: Callable[..., None]) -> bool:
        """Whether any metric takes in `stream`, one of `Metric`'s update methods; a stream that none reads is not made."""
        return any(getattr(type(metric), stream.__name__) is not stream for metric in self.active.values())

    @property
    def reconstruct(self) -> bool:
        """Whether any metric reads reconstructions."""
        return any(metric.reconstructs for metric in self.active.values())


def _chosen(metrics: list[str] | None, quick: bool, reference: bool) -> list[str]:
    for name in metrics or []:
        if name not in METRICS:
            raise ConfigError(f"{name}: unknown metric; {suggest(name, METRICS.names())}")
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
    progress: Progress = lambda stage, done, total: None,
) -> Report:
    """Measure a model; equal seeds give equal numbers.

    Args:
        real_test: the test split, once.
        real_train: the training split, once: what diversity is compared with, and what `reference` trains on.
        samples: how many images are generated, the classes in turn.
        metrics: names out of `METRICS`; default: all that are not made on request.
        quick: leave out what takes long, and generate `QUICK_SAMPLES` at most: for use during training.
        reference: also what real training images in the place of generated ones would reach (`real/cas`).

    Returns:
        The numbers; what could not be had is named in `skipped`, with the reason.

    Raises:
        ConfigError: for the name of a metric that does not exist.
    """
    names = _chosen(metrics, quick, reference)
    samples = min(samples, QUICK_SAMPLES) if quick else samples
    fed = _Metrics(names, Setting(model.card, samples, seed, model.device, progress))

    if real_train is not None and fed.reads(Metric.update_train):
        _feed_train(model, fed, real_train, progress)
    if fed.reads(Metric.update_generated):
        _feed_generated(model, fed, samples, seed, batch_size, progress)
    if fed.reads(Metric.update_real):
        _feed_test(model, fed, real_test, progress)
    return fed.compute()


def _feed_train(model: Model, fed: _Metrics, batches: Iterable[Batch], progress: Progress) -> None:
    done = 0
    for batch in batches:
        fed.update_train(batch.to(model.device))
        progress("read the training split", done := done + len(batch), None)


def _feed_generated(model: Model, fed: _Metrics, samples: int, seed: int, batch_size: int, progress: Progress) -> None:
    labels, done = balanced_labels(samples, list(range(len(model.card.classes)))), 0
    for canvas, rows in generate(model, Prompt.of_classes(labels), seed, "evaluate", batch_size):
        fed.update_generated(canvas, labels[rows].to(model.device), _read(model, canvas.image))
        progress("generate", done := done + len(rows), samples)


def _feed_test(model: Model, fed: _Metrics, batches: Iterable[Batch], progress: Progress) -> None:
    done = 0
    for batch in batches:
        here = batch.to(model.device)
        labels = here.label.where(here.present["class"], -1)
        with torch.no_grad():
            reconstruction = model.reconstruct(here.image, Prompt.of_classes(labels)) if fed.reconstruct else None
        fed.update_real(here, _read(model, here.image), reconstruction)
        progress("read the test split", done := done + len(batch), None)


def _read(model: Model, image: Tensor) -> Prediction:
    with torch.no_grad():
        return model.predict(image)
