"""Evaluation of a run's checkpoint: what is loaded, in one process or in several, and where the numbers go."""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mtgen.config import Config, validate
from mtgen.config.paths import absolute
from mtgen.data.mixture import Samples, open_samples
from mtgen.errors import CheckpointError, ConfigError, UserError
from mtgen.evaluation.cache import CacheScope, TensorCache
from mtgen.evaluation.collection import MetricReport
from mtgen.evaluation.evaluate import check_names, evaluate
from mtgen.evaluation.extractor import digest_of
from mtgen.evaluation.metric import journal_name
from mtgen.evaluation.splits import MAX_PROMPT_SAMPLES, SplitBatches, evaluation_prompts
from mtgen.evaluation.streams import StreamProducer, StreamSource
from mtgen.models.loading import find_run, load_run
from mtgen.models.model import Model
from mtgen.schema import DatasetCard
from mtgen.storage.source import absolute_location
from mtgen.tracking.journal import JOURNAL_FILE, Journal
from mtgen.tracking.tracker import send_pending
from mtgen.utils.progress_callback import StageProgress, ignore_stage
from mtgen.utils.system import code_version
from mtgen.utils.yaml_text import override


@dataclass(frozen=True)
class EvaluationOptions:
    """What to evaluate, and how.

    Attributes:
        data: another data set to test on, a folder or a URL; `None`: the run's own.
        samples: number of images to generate; `None`: the configuration's.
        seed: seed of every random number.
        device: where the model computes.
        metrics: names of metrics; `None`: all.
        checkpoint: see `mtgen.models.loading.select_checkpoint`; `None`: the newest.
        assignments: `evaluate.KEY=VALUE`, which override the run's configuration.
        workers: number of processes that share the work.
    """

    data: str | None = None
    samples: int | None = None
    seed: int = 0
    device: str = "auto"
    metrics: tuple[str, ...] | None = None
    checkpoint: str | None = None
    assignments: tuple[str, ...] = ()
    workers: int = 1


@dataclass(frozen=True)
class EvaluationJob:
    """One worker's part of an evaluation.

    Attributes:
        folder: the run's folder.
        images: images seen at the checkpoint, once it is known.
        rank, world: number of this worker, and of all workers.
        threads: CPU threads of this worker; 0: not limited.
    """

    folder: Path
    options: EvaluationOptions
    images: int | None = None
    rank: int = 0
    world: int = 1
    threads: int = 0


WorkerPool = Callable[[Config, EvaluationJob], AbstractContextManager[StreamSource]]
"""(configuration with the number of workers, job) -> workers that produce its parts while the context lasts."""


@dataclass(frozen=True)
class LoadedEvaluation:
    """The model and the data of an evaluation, and one worker's producer.

    Attributes:
        config: the run's configuration with the assignments.
        images: images seen at the checkpoint.
    """

    producer: StreamProducer
    model: Model
    config: Config
    test: Samples
    train: Samples
    images: int


def load_evaluation(job: EvaluationJob) -> LoadedEvaluation:
    """Load the model and the data of an evaluation.

    Raises:
        CheckpointError: the run has written a newer checkpoint since the evaluation began.
        ConfigError: the data set has other classes than those that the run was trained on.
    """
    options = job.options
    model, images = load_run(job.folder, options.device, options.checkpoint)
    if job.images is not None and images != job.images:
        raise CheckpointError(
            f"{job.folder}: a checkpoint was written during the evaluation; start it again after the training has ended"
        )
    config = _with_assignments(model.config, options.assignments)
    data = config.data.model_copy(update={"path": options.data, "mixture": []} if options.data else {})
    test, train = open_samples(data, "test"), open_samples(data, "train")
    _check_classes(model.card, test)
    producer = StreamProducer(
        model,
        SplitBatches(config, test, rank=job.rank, world=job.world),
        SplitBatches(config, train, rank=job.rank, world=job.world),
        samples=options.samples or config.evaluate.samples,
        seed=options.seed,
        prompts=evaluation_prompts(model, SplitBatches(config, test, MAX_PROMPT_SAMPLES)),
        rank=job.rank,
        world=job.world,
    )
    return LoadedEvaluation(producer, model, config, test, train, images)


def evaluate_run(
    run: Path,
    options: EvaluationOptions,
    *,
    progress: StageProgress = ignore_stage,
    worker_pool: WorkerPool | None = None,
    publish: Callable[[Path], None] | None = None,
) -> MetricReport:
    """Compute metrics of a run's checkpoint; on its own data, the numbers also go to its journal and its MLflow run.

    Args:
        worker_pool: provides the processes where `options.workers` is more than 1.
        publish: called with the run's folder after its journal was updated, such as `mtgen.report.refresh_report`.

    Raises:
        ConfigError: a metric or a setting does not exist, the extractor cannot be used, or the data set has other
            classes than the run.
    """
    check_names(list(options.metrics or ()))
    folder = find_run(run)
    job = EvaluationJob(folder, replace(options, data=options.data and absolute_location(options.data)))
    in_pool = options.workers > 1 and worker_pool is not None
    # the system of this process may have no GPU where the workers' have
    loaded = load_evaluation(replace(job, options=replace(job.options, device="auto")) if in_pool else job)
    config = loaded.config
    if in_pool and worker_pool is not None:
        pool = worker_pool(
            config.model_copy(update={"workers": options.workers, "device": options.device}),
            replace(job, options=_with_absolute_extractor(job.options, config), images=loaded.images),
        )
    else:
        pool = nullcontext(loaded.producer.parts)
    with pool as source:
        report = evaluate(
            loaded.model,
            loaded.producer.test,
            loaded.producer.train,
            samples=loaded.producer.samples,
            seed=options.seed,
            metrics=None if options.metrics is None else list(options.metrics),
            extractor=config.evaluate.extractor,
            data_cache=_data_cache(loaded, folder),
            run_cache=_run_cache(loaded, folder),
            source=source,
            progress=progress,
        )
    # exported models and copied checkpoints have no journal
    if options.data is None and (folder / JOURNAL_FILE).is_file():
        try:
            _record(folder, config, loaded.images, report, publish)
        except UserError as error:
            print(f"warning: the numbers are not in the run's records: {error}", file=sys.stderr)
    return report


def _with_assignments(config: Config, assignments: Sequence[str]) -> Config:
    if wrong := [text for text in assignments if not text.startswith("evaluate.")]:
        raise ConfigError(f"{wrong[0]}: a trained run cannot be changed; use evaluate.KEY=VALUE")
    values = config.model_dump(mode="json")
    override(values, list(assignments))
    return absolute(validate(values))


def _with_absolute_extractor(options: EvaluationOptions, config: Config) -> EvaluationOptions:
    """Options for workers, whose current folders differ from this process's."""
    if config.evaluate.extractor is None:
        return options
    path = f"evaluate.extractor.path={json.dumps(config.evaluate.extractor.path)}"
    return replace(options, assignments=(*options.assignments, path))


def _check_classes(trained: DatasetCard, samples: Samples) -> None:
    """Raise `ConfigError` where the data set's classes are not those that the run was trained on."""
    card = samples.card
    for what, trained_names, names in (
        ("classes", trained.classes, card.classes),
        ("mask_classes", trained.mask_classes, card.mask_classes),
    ):
        number = next((n for n, pair in enumerate(zip_longest(trained_names, names)) if pair[0] != pair[1]), None)
        if names and number is not None:
            expected, found = (
                repr(some[number]) if number < len(some) else "missing" for some in (trained_names, names)
            )
            raise ConfigError(
                f"{samples.folder}: number {number} of its {what} is {found}, where the run was trained on {expected}; "
                f"use data whose dataset.json has the same {what} in the same order"
            )


def _record(
    folder: Path, config: Config, images: int, report: MetricReport, publish: Callable[[Path], None] | None
) -> None:
    """Write the numbers to the run's journal, its MLflow run and its page."""
    with closing(Journal(folder)) as journal:
        # separate names: MLflow already has values of the quick metrics at this step, of fewer samples
        journal.row(images, {journal_name(name): value for name, value in report.items()})
    send_pending(config, folder)
    if publish is not None:
        publish(folder)


def _preprocessing_key(config: Config) -> dict[str, Any]:
    """How samples are preprocessed, as part of a cache key."""
    return {
        "size": list(config.size),
        "channels": config.data.channels,
        "boxes": config.data.max_boxes,
        "limit": config.data.max_samples,
    }


def _data_cache(loaded: LoadedEvaluation, folder: Path) -> CacheScope:
    """Features and reference models of the training split: in `cache/evaluation` beside the run, shared by all runs."""
    key = {
        "fingerprint": loaded.train.fingerprint,
        "split": loaded.train.split,
        **_preprocessing_key(loaded.config),
    }
    return CacheScope(TensorCache(folder.parent / "cache" / "evaluation"), key)


def _run_cache(loaded: LoadedEvaluation, folder: Path) -> CacheScope:
    """The progress of an evaluation: in `cache` inside the run's folder."""
    networks = loaded.model.networks
    key = {
        "model": [digest_of(networks.generator), digest_of(networks.side)],
        "data": {split.split: split.fingerprint for split in (loaded.train, loaded.test)},
        **_preprocessing_key(loaded.config),
        **code_version(),
    }
    return CacheScope(TensorCache(folder / "cache"), key)
