"""One pass over real and one over generated data feed every metric."""

from collections.abc import Iterable

from torch import Tensor

from mtgen.config import ExtractorConfig
from mtgen.errors import ConfigError
from mtgen.evaluation.cache import NO_CACHE, CacheScope
from mtgen.evaluation.collection import MetricCollection, MetricReport
from mtgen.evaluation.extractor import FeatureExtractor, FileExtractor
from mtgen.evaluation.metric import METRICS, Metric, MetricContext, StageProgress
from mtgen.evaluation.resume import ResumablePass
from mtgen.evaluation.serialization import packed, unpacked
from mtgen.evaluation.streams import RequestedOutputs, StreamProducer, StreamSource
from mtgen.models.model import Model
from mtgen.registry import suggest
from mtgen.schema import Batch, Prompt

QUICK_SAMPLES = 500
"""Generated images for the quick metrics: 50 a class of ten, so that a deviation within a class is right to 1 %."""


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
    asked: Prompt | None = None,
    metrics: list[str] | None = None,
    quick: bool = False,
    reference: bool = False,
    batch_size: int = 100,
    extractor: ExtractorConfig | None = None,
    real: CacheScope = NO_CACHE,
    own: CacheScope = NO_CACHE,
    gather: StreamSource | None = None,
    progress: StageProgress = lambda stage, done, total: None,
) -> MetricReport:
    """Measure a model; equal seeds give equal numbers.

    Args:
        real_test: the test split, once.
        real_train: the training split, gone through twice: what diversity and distributions are compared with, and what `reference`
            trains on.
        samples: how many images are generated.
        asked: what for, its rows in turn; default: the classes in turn.
        metrics: names out of `METRICS`; default: all that are not made on request.
        quick: leave out what takes long, and generate `QUICK_SAMPLES` at most: for use during training.
        reference: also what real training images in the place of generated ones would reach (`real/cas`, `real/miou`, `real/ap50`).
        extractor: whose features distributions are compared by; default: the small network's (`SmallCNN`).
        real: where features and readers of the training split are kept, by what it is and how it is looked at.
        own: where it is kept how far this evaluation is, by model and data; removed when it is done.
        gather: does the work; default: this process. Metrics are fed here in either case.

    Returns:
        The numbers; what could not be had is named in `skipped`, with the reason.

    Raises:
        ConfigError: for the name of a metric that does not exist, or an extractor that cannot be used.
    """
    names = _chosen(metrics, quick, reference)
    samples = min(samples, QUICK_SAMPLES) if quick else samples
    file = _extractor(names, extractor, model)  # what is wrong with it is said first
    how = {
        "metrics": names,
        "samples": samples,
        "seed": seed,
        "batch": batch_size,
        "extractor": file.digest if file else None,
    }
    kept = own.at(**how).nested_cache()
    setting = MetricContext(
        model.card,
        samples,
        seed,
        model.device,
        progress,
        tuple(model.conditions),
        model.translates,
        real=real,
        own=CacheScope(kept),
    )
    panel = MetricCollection(names, setting)
    panel.small = panel.compares() and file is None
    work = (
        gather
        or StreamProducer(
            model, real_test, real_train, samples=samples, seed=seed, asked=asked, batch_size=batch_size
        ).stage
    )
    stages = ResumablePass(work, panel, kept, progress)

    if real_train is not None and (panel.reads(Metric.update_train) or panel.independent):
        stages.feed("read", RequestedOutputs(), panel.read)
    used = panel.compare_by(file)
    if used is not None and panel.compares("train") and real_train is not None:
        _compare_with_train(stages, used, real)
    if panel.reads(Metric.update_generated) or panel.compares("generated"):
        wanted = RequestedOutputs(
            predictions=panel.reads(Metric.update_generated), extract=used if panel.compares("generated") else None
        )
        stages.feed("generated", wanted, panel.generated, samples)
    if (wanted := panel.wanted_of_test(used)) != RequestedOutputs():
        stages.feed("tested", wanted, panel.tested)
    report = panel.compute()
    if kept is not None:
        kept.remove()
    return report


def _extractor(names: list[str], extractor: ExtractorConfig | None, model: Model) -> FileExtractor | None:
    return (
        FileExtractor(extractor, model.device) if extractor and any(METRICS[name].compared for name in names) else None
    )


def _compare_with_train(stages: ResumablePass, extract: FeatureExtractor, real: CacheScope) -> None:
    """Features of the training split: those that an earlier evaluation stored, or computed and stored."""
    shelf, sets = real.at(features=extract.digest), stages.panel.features
    if (found := shelf.get()) is not None:
        sets.sets["train"] = unpacked(found[1], found[0])
    else:
        if "train" not in sets.sets:  # nor was it with what an interrupted evaluation had
            stages.done.pop("seen", None)
        stages.feed(
            "seen", RequestedOutputs(extract=extract), lambda part: sets.update("train", part.features, part.position)
        )
        if "train" in sets.sets:
            tensors: dict[str, Tensor] = {}
            note = packed(sets.sets["train"], tensors)
            shelf.put(tensors, note)
    stages.elsewhere = ("train",) if shelf.store is not None else ()
