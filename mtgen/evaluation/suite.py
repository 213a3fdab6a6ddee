"""One pass over real and one over generated data feed every metric."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from mtgen import counter
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

    def update_conditioned(self, modality: str, batch: Batch, canvas: Canvas) -> None:
        for name, metric in list(self.active.items()):
            if modality in metric.asks:
                with self._unless_skipped(name):
                    metric.update_conditioned(modality, batch, canvas)

    def update_embedded(self, batch: Batch, embedded: dict[str, Tensor]) -> None:
        for name, metric in list(self.active.items()):
            with self._unless_skipped(name):
                metric.update_embedded(batch, embedded)

    def update_translated(self, batch: Batch, target: Tensor, canvas: Canvas) -> None:
        for name, metric in list(self.active.items()):
            with self._unless_skipped(name):
                metric.update_translated(batch, target, canvas)

    def skip(self, stream: Callable[..., None], reason: str) -> None:
        """Leave out the metrics that take in `stream`."""
        for name, metric in list(self.active.items()):
            if getattr(type(metric), stream.__name__) is not stream:
                with self._unless_skipped(name):
                    raise Skipped(reason)

    @property
    def asks(self) -> set[str]:
        """The modalities by which alone images have to be drawn."""
        return {modality for metric in self.active.values() for modality in metric.asks}

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


def check_names(metrics: list[str] | None) -> None:
    """Whether there is a metric of each name.

    Raises:
        ConfigError: there is not; all possible names are given.
    """
    for name in metrics or []:
        if name not in METRICS:
            raise ConfigError(f"{name}: unknown metric; {suggest(name, METRICS.names())}")


def _chosen(metrics: list[str] | None, quick: bool, reference: bool) -> list[str]:
    check_names(metrics)
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
    setting = Setting(
        model.card,
        samples,
        seed,
        model.device,
        progress,
        conditions=tuple(model.conditions),
        generates=model.generates,
        predict=lambda image: _read(model, image),
        translates=model.translates,
    )
    fed = _Metrics(names, setting)

    if real_train is not None and (fed.reads(Metric.update_train) or setting.judges.wanted):
        _feed_train(model, fed, setting, real_train, progress)
    if fed.reads(Metric.update_generated):
        _feed_generated(model, fed, samples, seed, batch_size, progress)
    if any(fed.reads(s) for s in (Metric.update_real, Metric.update_conditioned, Metric.update_embedded, Metric.update_translated)):
        _feed_test(model, fed, real_test, seed, progress)
    return fed.compute()


def _feed_train(model: Model, fed: _Metrics, setting: Setting, batches: Iterable[Batch], progress: Progress) -> None:
    done = 0
    for batch in batches:
        here = batch.to(model.device)
        setting.judges.update_train(here)
        fed.update_train(here)
        progress("read the training split", done := done + len(batch), None)


def _feed_generated(model: Model, fed: _Metrics, samples: int, seed: int, batch_size: int, progress: Progress) -> None:
    labels, done = balanced_labels(samples, list(range(len(model.card.classes)))), 0
    for canvas, rows in generate(model, Prompt.of_classes(labels), seed, "evaluate", batch_size):
        fed.update_generated(canvas, labels[rows].to(model.device), _read(model, canvas.image))
        progress("generate", done := done + len(rows), samples)


def _feed_test(model: Model, fed: _Metrics, batches: Iterable[Batch], seed: int, progress: Progress) -> None:
    classes = torch.arange(len(model.card.classes))
    done = 0
    for batch in batches:
        here = batch.to(model.device)
        labels = here.label.where(here.present["class"], -1)
        with torch.no_grad():
            reconstruction = model.reconstruct(here.image, Prompt.of_classes(labels)) if fed.reconstruct else None
        prediction = _read(model, here.image)
        fed.update_real(here, prediction, reconstruction)
        for modality in sorted(fed.asks):
            _conditioned(model, fed, here, modality, seed)
        if fed.reads(Metric.update_embedded):
            _embedded(model, fed, here, prediction, classes)
        if fed.reads(Metric.update_translated):
            _translated(model, fed, here, seed)
        progress("read the test split", done := done + len(batch), None)


def _latent(model: Model, seed: int, purpose: str, position: Tensor) -> Tensor:
    return counter.normal(seed, f"evaluate {purpose}", position, (model.latent_size,), model.device)


def _clamped(canvas: Canvas) -> Canvas:
    return replace(canvas, image=canvas.image.float().clamp(-1, 1))


@torch.no_grad()
def _conditioned(model: Model, fed: _Metrics, batch: Batch, modality: str, seed: int) -> None:
    """Draw an image for each sample that has the modality, and for nothing else of it."""
    prompt = model.prompt(batch, modality)
    rows = prompt.given[modality].cpu().nonzero()[:, 0]
    if len(rows):
        part = batch.rows(rows)
        canvas = model.sample(prompt.rows(rows.to(model.device)), _latent(model, seed, modality, part.position))
        fed.update_conditioned(modality, part, _clamped(canvas))


@torch.no_grad()
def _embedded(model: Model, fed: _Metrics, batch: Batch, prediction: Prediction, classes: Tensor) -> None:
    """Images, modalities and classes as vectors in the shared space."""
    if prediction.embedding is None:
        fed.skip(Metric.update_embedded, "the run does not align images with what they are asked for by")
        return
    embedded = {"image": prediction.embedding.float()}
    for name in model.conditions:
        if name not in ("image", "layout", "boxes"):
            prompt = model.prompt(batch, name)
            embedded[name] = F.normalize(model.condition(prompt).pooled.float(), dim=1) * prompt.given[name][:, None]
    if "class" in model.conditions:
        embedded["classes"] = F.normalize(model.condition(Prompt.of_classes(classes)).pooled.float(), dim=1)
    fed.update_embedded(batch, embedded)


@torch.no_grad()
def _translated(model: Model, fed: _Metrics, batch: Batch, seed: int) -> None:
    """Draw each sample anew in every other data set of a mixture, or, where classes are the domains, in one other class in turn."""
    kind = model.translates
    if kind == "class":
        count = len(model.card.classes)
        batch = batch.rows(batch.present["class"].cpu().nonzero()[:, 0])
        others = 1 + batch.position.to(model.device) % max(count - 1, 1)
        targets = [(batch.label + others) % count]
    else:
        own = torch.zeros_like(batch.label) if batch.domain is None else batch.domain
        targets = [torch.full_like(own, domain) for domain in range(len(model.card.domains))]
    for target in targets:
        rows = torch.arange(len(batch)) if kind == "class" else (own != target).cpu().nonzero()[:, 0]
        if not len(rows):
            continue
        part, wanted = batch.rows(rows), target[rows.to(target.device)]
        prompt = Prompt(len(rows), {str(kind): wanted}, {str(kind): torch.ones_like(wanted, dtype=torch.bool)})
        canvas = model.translate(part.image, prompt, _latent(model, seed, "translation", part.position))
        if canvas is None:
            fed.skip(Metric.update_translated, "the run does not translate images")
            return
        fed.update_translated(part, wanted, _clamped(canvas))


def _read(model: Model, image: Tensor) -> Prediction:
    with torch.no_grad():
        return model.predict(image)
