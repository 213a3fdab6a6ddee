"""One pass over real and one over generated data feed every metric."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from mtgen import counter
from mtgen.errors import ConfigError
from mtgen.evaluation.metric import METRICS, Metric, Progress, Setting, Skipped
from mtgen.evaluation.yardsticks import Yardsticks
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
        self.yardsticks = Yardsticks(setting)
        for metric in self.active.values():
            metric.yardsticks = self.yardsticks

    @contextmanager
    def _unless_skipped(self, name: str) -> Iterator[None]:
        try:
            yield
        except Skipped as reason:
            self.report.skipped[name] = str(reason)
            self.active.pop(name, None)

    def update_train(self, batch: Batch) -> None:
        if self.independent:
            self.yardsticks.update_train(batch)
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

    def update_condition(self, condition: str, batch: Batch, canvas: Canvas) -> None:
        for name, metric in list(self.active.items()):
            if condition in metric.conditions:
                with self._unless_skipped(name):
                    metric.update_condition(condition, batch, canvas)

    def update_shared(self, batch: Batch, image: Tensor, asked: dict[str, tuple[Tensor, Tensor]]) -> None:
        for name, metric in list(self.active.items()):
            with self._unless_skipped(name):
                metric.update_shared(batch, image, asked)

    def update_translation(self, to: int, batch: Batch, canvas: Canvas) -> None:
        for name, metric in list(self.active.items()):
            with self._unless_skipped(name):
                metric.update_translation(to, batch, canvas)

    def compute(self) -> Report:
        for name, metric in list(self.active.items()):
            with self._unless_skipped(name):
                self.report.update(metric.compute())
        return self.report

    def reads(self, stream: Callable[..., None]) -> bool:
        """Whether any metric takes in `stream`, one of `Metric`'s update methods; a stream that none reads is not made."""
        return any(getattr(type(metric), stream.__name__) is not stream for metric in self.active.values())

    @property
    def independent(self) -> bool:
        """Whether any metric reads with the independent readers."""
        return any(metric.independent for metric in self.active.values())

    @property
    def conditions(self) -> list[str]:
        """The modalities for which any metric reads what the model draws."""
        return list(dict.fromkeys(name for metric in self.active.values() for name in metric.conditions))

    @property
    def reconstruct(self) -> bool:
        """Whether any metric reads reconstructions."""
        return any(metric.reconstructs for metric in self.active.values())


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
    setting = Setting(model.card, samples, seed, model.device, progress, tuple(model.conditions), model.translates)
    fed = _Metrics(names, setting)

    if real_train is not None and (fed.reads(Metric.update_train) or fed.independent):
        _feed_train(model, fed, real_train, progress)
    if fed.reads(Metric.update_generated):
        _feed_generated(model, fed, samples, seed, batch_size, progress)
    read = [fed.reads(stream) for stream in (Metric.update_real, Metric.update_shared, Metric.update_translation)]
    if fed.conditions or any(read):
        _feed_test(model, fed, real_test, seed, progress)
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


def _feed_test(model: Model, fed: _Metrics, batches: Iterable[Batch], seed: int, progress: Progress) -> None:
    done = 0
    for batch in batches:
        here = batch.to(model.device)
        if fed.reads(Metric.update_real):
            labels = here.label.where(here.present["class"], -1)
            with torch.no_grad():
                reconstruction = model.reconstruct(here.image, Prompt.of_classes(labels)) if fed.reconstruct else None
            fed.update_real(here, _read(model, here.image), reconstruction)
        for name in fed.conditions:
            _feed_condition(model, fed, here, name, seed)
        if fed.reads(Metric.update_shared):
            _feed_shared(model, fed, here)
        if fed.reads(Metric.update_translation):
            _feed_translations(model, fed, here, seed)
        progress("read the test split", done := done + len(batch), None)


def _latent(model: Model, batch: Batch, seed: int, purpose: str) -> Tensor:
    return counter.normal(seed, purpose, batch.position, (model.latent_size,), model.device)


def _within_picture(canvas: Canvas) -> Canvas:
    return replace(canvas, image=canvas.image.float().clamp(-1, 1))


def _feed_condition(model: Model, fed: _Metrics, batch: Batch, name: str, seed: int) -> None:
    with torch.no_grad():
        prompt = model.ask(batch, name)
        rows = prompt.given[name].nonzero().flatten()
        if len(rows):
            asked = batch.rows(rows.cpu())
            canvas = model.sample(prompt.rows(rows), _latent(model, asked, seed, f"evaluate condition {name}"))
            fed.update_condition(name, asked, _within_picture(canvas))


def _feed_shared(model: Model, fed: _Metrics, batch: Batch) -> None:
    image, asked = _read(model, batch.image).embedding, {}
    if image is None:
        return
    for name in model.conditions:
        if name in ("class", "caption", "sound"):
            prompt = model.ask(batch, name)
            with torch.no_grad():
                asked[name] = (model.embed(prompt), prompt.given[name])
    fed.update_shared(batch, image, asked)


def _feed_translations(model: Model, fed: _Metrics, batch: Batch, seed: int) -> None:
    """Every sample into every domain but its own; with classes as domains, the samples whose class is known."""
    kind = str(model.translates)
    if kind == "class":
        own, domains = batch.label.where(batch.present["class"], -1), range(len(model.card.classes))
    else:
        own, domains = torch.zeros_like(batch.label) if batch.domain is None else batch.domain, range(len(model.card.domains))
    for to in domains:
        rows = ((own != to) & (own >= 0)).nonzero().flatten()
        if len(rows):
            others = batch.rows(rows.cpu())
            number, there = torch.full_like(rows, to), torch.ones_like(rows, dtype=torch.bool)
            with torch.no_grad():
                latent = _latent(model, others, seed, "evaluate translation")
                canvas = model.translate(others.image, Prompt(len(rows), {kind: number}, {kind: there}), latent)
            if canvas is not None:
                fed.update_translation(to, others, _within_picture(canvas))


def _read(model: Model, image: Tensor) -> Prediction:
    with torch.no_grad():
        return model.predict(image)
