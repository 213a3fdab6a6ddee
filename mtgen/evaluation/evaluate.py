"""Evaluation of a model: every metric, by one pass over real and one over generated data."""

from collections.abc import Iterable

from mtgen.config import ExtractorConfig
from mtgen.config.conflicts import SAME_NETWORK
from mtgen.errors import ConfigError
from mtgen.evaluation.base import MetricContext, Stream
from mtgen.evaluation.cache import NO_CACHE, CacheScope
from mtgen.evaluation.collection import MetricCollection, MetricReport
from mtgen.evaluation.collectors.features import FeatureStatistics
from mtgen.evaluation.extractor import FileExtractor, shares_tensors
from mtgen.evaluation.metric import METRICS
from mtgen.evaluation.resume import ResumableStages
from mtgen.evaluation.serialization import pack, unpack
from mtgen.evaluation.streams import Stage, StreamProducer, StreamSource
from mtgen.models.backbone_files import open_network
from mtgen.models.model import Model
from mtgen.registry import suggest
from mtgen.schema import Batch, Prompt
from mtgen.utils.progress_callback import StageProgress, ignore_stage

QUICK_SAMPLES = 500
"""Generated images for the quick metrics: 50 for each of ten classes, so that a deviation has an error of about 1 %."""


def evaluate(
    model: Model,
    real_test: Iterable[Batch],
    real_train: Iterable[Batch] | None,
    *,
    samples: int,
    seed: int,
    prompts: Prompt | None = None,
    metrics: list[str] | None = None,
    quick: bool = False,
    on_request: bool = False,
    batch_size: int = 100,
    extractor: ExtractorConfig | None = None,
    data_cache: CacheScope = NO_CACHE,
    run_cache: CacheScope = NO_CACHE,
    source: StreamSource | None = None,
    progress: StageProgress = ignore_stage,
) -> MetricReport:
    """Compute metrics of a model; equal seeds give equal numbers.

    Args:
        real_test: the test split, in a snapshot the validation split; iterated once.
        real_train: the training split, iterated at most twice: generated images are compared with it, and reference
            models are trained on it.
        samples: number of images to generate.
        prompts: what generated images are conditioned on, cycling through the rows; default: cycling through the
            classes.
        metrics: names out of `METRICS`; default: all that are not `on_request`.
        quick: leave out slow metrics, and generate at most `QUICK_SAMPLES`; for use during training.
        on_request: also compute metrics that are `on_request`, such as `real/cas`: the scores of real images in place
            of generated.
        extractor: its features are compared; default: those of a small network (`SmallCNN`).
        data_cache: for features and reference models of the training split; its key names the data and how it is
            transformed.
        run_cache: for the progress of this evaluation; its key names model and data. Removed at the end.
        source: produces the parts of each stage; default: this process. Metrics are always updated in this process.

    Returns:
        The numbers; metrics that could not be computed are in `skipped`, with the reasons.

    Raises:
        ConfigError: a metric does not exist, or the extractor cannot be used.
    """
    names = _select_metrics(metrics, quick, on_request)
    samples = min(samples, QUICK_SAMPLES) if quick else samples
    file_extractor = _open_extractor(extractor, names, model)  # first, so its errors come before any work
    progress_cache = run_cache.extend(
        metrics=names,
        samples=samples,
        seed=seed,
        batch=batch_size,
        extractor=file_extractor.digest if file_extractor else None,
    ).nested_cache()
    context = MetricContext(
        model.card,
        samples,
        seed,
        model.device,
        progress,
        tuple(model.conditions),
        model.translates,
        data_cache=data_cache,
        run_cache=CacheScope(progress_cache),
    )
    if source is None:
        source = StreamProducer(
            model, real_test, real_train, samples=samples, seed=seed, prompts=prompts, batch_size=batch_size
        ).parts
    collection = MetricCollection(names, context, file_extractor)
    stages = ResumableStages(source, collection, progress_cache, progress)

    if real_train is not None:
        stages.run(Stage.TRAIN)
    collection.prepare_extractor()
    if real_train is not None:
        _run_train_features(stages, collection, data_cache)
    stages.run(Stage.GENERATED, samples)
    stages.run(Stage.TEST)
    report = collection.compute()
    if progress_cache is not None:
        progress_cache.remove()
    return report


def check_names(metrics: list[str]) -> None:
    """Raise `ConfigError` for a metric that does not exist; the message suggests the nearest name, and lists all."""
    for name in metrics:
        if name not in METRICS:
            raise ConfigError(f"{name}: unknown metric; {suggest(name, METRICS.names())}")


def _select_metrics(metrics: list[str] | None, quick: bool, on_request: bool) -> list[str]:
    check_names(metrics or [])
    if metrics is None:
        metrics = [name for name in METRICS if on_request or not METRICS[name].on_request]
    return [name for name in metrics if METRICS[name].quick or not quick]


def _open_extractor(extractor: ExtractorConfig | None, names: list[str], model: Model) -> FileExtractor | None:
    if extractor is None or not any(METRICS[name].compares for name in names):
        return None
    found = FileExtractor(extractor, model.device)
    if model.backbone is not None:
        network, _ = open_network(model.backbone.path, model.backbone.sha256)
        if shares_tensors(found.network, network):
            raise ConfigError(f"evaluate.extractor.path={extractor.path}: {SAME_NETWORK}")
    return found


def _run_train_features(stages: ResumableStages, collection: MetricCollection, data_cache: CacheScope) -> None:
    """Features of the training split: from the cache, or computed and cached."""
    outputs = collection.requested_outputs(Stage.TRAIN_FEATURES)
    if outputs is None or outputs.extractor is None:
        return
    cache, sets = data_cache.extend(features=outputs.extractor.digest), collection.features.sets
    if (cached := cache.get()) is not None:
        tensors, state = cached
        sets[Stream.TRAIN] = FeatureStatistics.from_state_dict(unpack(state, tensors))
    else:
        if Stream.TRAIN not in sets:  # an interrupted evaluation cached them, but that entry is gone
            stages.restart(Stage.TRAIN_FEATURES)
        stages.run(Stage.TRAIN_FEATURES)
        if Stream.TRAIN in sets:
            tensors = {}
            state = pack(sets[Stream.TRAIN].state_dict(), tensors)
            cache.put(tensors, state)
    stages.cached_features = Stream.TRAIN if cache.cache is not None else None
