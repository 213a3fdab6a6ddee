"""What a run shows of itself: pictures and quick test metrics while it trains, every metric when it is asked for."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from mtgen.config import Config, validate
from mtgen.config.paths import absolute
from mtgen.data.loader import iterate_split
from mtgen.data.mixture import Samples, open_samples
from mtgen.data.transform_spec import transform_spec_of
from mtgen.errors import CheckpointError, ConfigError, UserError
from mtgen.evaluation.cache import CacheScope, TensorCache
from mtgen.evaluation.collection import MetricReport
from mtgen.evaluation.evaluate import check_names, evaluate
from mtgen.evaluation.extractor import digest_of
from mtgen.evaluation.metric import StageProgress, evaluated
from mtgen.evaluation.streams import StreamProducer, StreamSource
from mtgen.models.loading import find_run, load_run
from mtgen.models.model import Model
from mtgen.models.sampling import balanced_labels, class_prompts, generate
from mtgen.networks.center_maps import decode_canvas
from mtgen.schema import Batch, Canvas, DatasetCard, Prediction, Prompt
from mtgen.storage.source import absolute_location
from mtgen.tracking.journal import JOURNAL_FILE, Journal
from mtgen.tracking.tracker import send_pending
from mtgen.utils import counter_rng
from mtgen.utils.system import code_version
from mtgen.utils.yaml_text import override
from mtgen.visualization import grids
from mtgen.visualization.layers import GridPanel, LayeredGrid, write_layered_grid

GRID_ROWS = 8
"""Samples of each class in a run's grid."""
MAX_PROMPT_SAMPLES = 2_000
"""Test samples at most for whose labels images are drawn in an evaluation."""
NUM_PICTURED_SAMPLES = 32
"""Test samples in the other pictures, always the same."""

RenderedGrid = tuple[Image, LayeredGrid]
"""One picture to keep, and the same in layers for the report."""


@dataclass(frozen=True)
class SplitBatches:
    """A split, as the networks see it, without augmentation; each time it is gone through, from its start.

    Attributes:
        limit: only the first so many samples, and no more than `data.max_samples`.
        rank, world: this worker's part of the split.
    """

    config: Config
    index: Samples
    limit: int | None = None
    rank: int = 0
    world: int = 1

    def __iter__(self) -> Iterator[Batch]:
        return self.since(0)

    def since(self, start: int) -> Iterator[Batch]:
        """See `mtgen.evaluation.streams.SeekableBatches`."""
        limit = min((limit for limit in (self.limit, self.config.data.max_samples) if limit is not None), default=None)
        return iterate_split(
            self.index,
            transform_spec_of(self.config),
            batch_size=100,
            limit=limit,
            rank=self.rank,
            world=self.world,
            start=start,
        )


class Snapshots:
    """Pictures of a fixed seed and quick metrics, again and again from the same samples.

    Args:
        config: of the run; pictures go into its folder's `samples/`.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.test = open_samples(config.data, "test")
        self.train = open_samples(config.data, "train")
        self.asked: Prompt | None = None

    def __call__(self, model: Model, images: int) -> tuple[dict[str, float], list[Path]]:
        """The averaged model after so many images -> numbers, and the pictures that were written."""
        seed = self.config.seed
        if self.asked is None:  # a matter of the data, not of the weights
            self.asked = evaluation_prompts(model, SplitBatches(self.config, self.test, MAX_PROMPT_SAMPLES))
        train = list(SplitBatches(self.config, self.train, limit=2000))
        report = evaluate(
            model, SplitBatches(self.config, self.test), train, samples=2000, seed=seed, asked=self.asked, quick=True
        )
        folder = self.config.folder / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, (picture, sheet) in self._pictures(model).items():
            path = folder / f"{images:09d}-{name}.png"
            picture.save(path)
            picture.save(folder / f"latest-{name}.png")
            write_layered_grid(self.config.folder, images, name, sheet, model.card)
            paths.append(path)
        return dict(report), paths

    def _pictures(self, model: Model) -> dict[str, RenderedGrid]:
        shown: Batch = next(iter(SplitBatches(self.config, self.test, limit=NUM_PICTURED_SAMPLES))).to(model.device)
        read = model.predict(shown.image)
        made = {
            "grid": grid(model, self.config.seed),
            "reading": (grids.prediction_grid(shown, read, model.card), _reading(shown, read, model.card)),
        }
        labels = torch.where(shown.present["class"], shown.label, -1)
        if (again := model.reconstruct(shown.image, Prompt.of_classes(labels))) is not None:
            panels = [GridPanel("original", shown.image), GridPanel("reconstruction", again.image)]
            made["reconstruction"] = (
                grids.reconstruction_grid(shown.image, again.image),
                LayeredGrid("Reconstructions of test images", panels),
            )
        made |= condition_grids(model, shown, self.config)
        if (turned := translations(model, shown, self.config.seed)) is not None:
            made["translation"] = turned
        return made


def _where(batch: Batch, component: str) -> torch.Tensor | None:
    """A component of a batch, where any sample has it."""
    return getattr(batch, component) if batch.present[component].any() else None


def _reading(batch: Batch, read: Prediction, card: DatasetCard) -> LayeredGrid:
    """Test images with their labels, beside the same images with what was read in them."""
    mask = None if read.mask_logits is None else read.mask_logits.argmax(1)
    panels = [
        GridPanel("truth", batch.image, _where(batch, "mask"), batch.boxes),
        GridPanel("as read", batch.image, mask, read.boxes),
    ]
    captions, marks = grids.class_names(batch, card), [""] * len(batch)
    if read.class_logits is not None and card.classes:
        found = [card.classes[number] for number in read.class_logits.argmax(1).tolist()]
        marks = [
            "" if not true else "right" if true == name else "wrong" for true, name in zip(captions, found, strict=True)
        ]
        captions = [
            name if mark != "wrong" else f"{name}, not {true}"
            for name, true, mark in zip(found, captions, marks, strict=True)
        ]
    return LayeredGrid("Test images as they are read", panels, captions, marks)


def grid(model: Model, seed: int, rows: int = GRID_ROWS) -> RenderedGrid:
    """The grid of a run: the first classes side by side where it can be asked for them, a few samples of each, of the same latents."""
    classes = list(range(min(len(model.card.classes), 10))) if {"class", "labels"} & set(model.conditions) else []
    labels = balanced_labels(rows * max(len(classes), 8), classes)
    canvas = Canvas.cat([part for part, _ in generate(model, class_prompts(model, labels), seed, "grid")])
    boxes = None if canvas.boxes is None else decode_canvas(canvas.boxes)
    panel = GridPanel("drawn", canvas.image, None if canvas.mask is None else canvas.mask.argmax(1), boxes)
    names = [model.card.classes[label] if label >= 0 else "" for label in labels.tolist()]
    return grids.sample_grid(canvas, labels, model.card, boxes=boxes), LayeredGrid(
        "Samples from the same latents", [panel], names
    )


def condition_grids(model: Model, shown: Batch, config: Config) -> dict[str, RenderedGrid]:
    """A grid for each modality: what test samples ask for by it alone, and what is drawn; always from the same latents."""
    made = {}
    for name in (name for name in ("labels", "caption", "sound", "image", "layout") if name in model.conditions):
        prompt = model.prompt_from_batch(shown, name)
        rows = prompt.given[name].nonzero().flatten()
        if not len(rows):
            continue
        batch = shown.rows(rows.cpu())
        latent = counter_rng.normal(config.seed, f"picture {name}", batch.position, (model.latent_size,), model.device)
        canvas = model.sample(prompt.rows(rows), latent)
        seen = batch.image if name == "image" else batch.mask if name == "layout" else None
        title, words = f"asked for by {name} alone", _words(batch, name, config, model)
        panels = (
            [GridPanel("asked", batch.image)]
            if name == "image"
            else [GridPanel("asked", None, batch.mask)]
            if name == "layout"
            else []
        )
        panels.append(GridPanel("drawn", canvas.image, None if canvas.mask is None else canvas.mask.argmax(1)))
        made[f"asked-{name}"] = (
            grids.condition_grid(title, words, seen, canvas, model.card),
            LayeredGrid(title.capitalize(), panels, words),
        )
    return made


def _words(batch: Batch, name: str, config: Config, model: Model) -> list[str]:
    """What stands over each image: its caption, its labels, or the class that its recording says; nothing over what can be seen.

    The tokens of a trained tokenizer have no way back to text here: then it is the class of the captioned image.
    """
    if name == "caption" and batch.caption is not None and config.data.tokenizer is None:
        return grids.caption_texts(batch)
    if name == "labels" and batch.labels is not None:
        return [
            "+".join(model.card.classes[number] for number in row.nonzero().flatten().tolist()) or "nothing"
            for row in batch.labels
        ]
    return grids.class_names(batch, model.card) if name in ("caption", "sound") else [""] * len(batch)


def translations(model: Model, shown: Batch, seed: int, rows: int = GRID_ROWS) -> RenderedGrid | None:
    """The grid of translations, test images into the first ten domains; `None` where the run does not translate."""
    kind = model.translates
    if kind is None:
        return None
    batch = shown.rows(torch.arange(min(rows, len(shown))))
    latent = counter_rng.normal(seed, "picture translation", batch.position, (model.latent_size,), model.device)
    turned = []
    for number, name in enumerate((model.card.classes if kind == "class" else model.card.domains)[:10]):
        to, there = torch.full_like(batch.label, number), torch.ones_like(batch.label, dtype=torch.bool)
        canvas = model.translate(batch.image, Prompt(len(batch), {kind: to}, {kind: there}), latent)
        if canvas is not None:
            turned.append((name, canvas.image))
    if not turned:
        return None
    panels = [GridPanel("original", batch.image), *(GridPanel(name, image) for name, image in turned)]
    return grids.translation_grid(batch.image, turned), LayeredGrid("Test images translated", panels)


@dataclass(frozen=True)
class EvaluationJob:
    """An evaluation as a worker has to know it.

    Attributes:
        folder: the run's.
        against: another data set to test on, a folder or a URL; `None`: the run's own.
        samples: how many images are generated; `None`: the configuration's.
        checkpoint: which, see `mtgen.models.loading.select_checkpoint`; `None`: the newest.
        images: that it has seen, once it is known.
        assignments: `evaluate.KEY=VALUE` over the run's configuration.
        rank, world: this worker's number, and how many there are.
        threads: CPUs of this worker; 0: not said.
    """

    folder: Path
    against: str | None
    samples: int | None
    seed: int
    device: str
    checkpoint: str | None = None
    images: int | None = None
    assignments: tuple[str, ...] = ()
    rank: int = 0
    world: int = 1
    threads: int = 0


WorkerPool = Callable[[Config, EvaluationJob], AbstractContextManager[StreamSource]]
"""(configuration with the number of workers, the job) -> workers that do it, for as long as the context lasts."""


@dataclass(frozen=True)
class LoadedEvaluation:
    """A worker's work, and what it is done on.

    Attributes:
        images: that the checkpoint has seen.
    """

    work: StreamProducer
    model: Model
    test: Samples
    train: Samples
    images: int


def load_evaluation(job: EvaluationJob) -> LoadedEvaluation:
    """Load what an evaluation works on.

    Raises:
        CheckpointError: the run has a newer checkpoint than the one that is measured.
        ConfigError: the data set has other classes than those that the run was trained on.
    """
    model, images = load_run(job.folder, job.device, job.checkpoint)
    if job.images is not None and images != job.images:
        raise CheckpointError(
            f"{job.folder}: a checkpoint was written during the evaluation; start it again when training has ended"
        )
    config = model.config = _with(model.config, list(job.assignments))
    other = {"path": job.against, "mixture": []} if job.against else {}
    data = config.data.model_copy(update=other)
    test, train = open_samples(data, "test"), open_samples(data, "train")
    _check_classes(model.card, test)
    parts = [SplitBatches(config, split, rank=job.rank, world=job.world) for split in (test, train)]
    samples = job.samples or config.evaluate.samples
    asked = evaluation_prompts(model, SplitBatches(config, test, MAX_PROMPT_SAMPLES))
    work = StreamProducer(model, *parts, samples=samples, seed=job.seed, asked=asked, rank=job.rank, world=job.world)
    return LoadedEvaluation(work, model, test, train, images)


def evaluation_prompts(model: Model, test: Iterable[Batch]) -> Prompt | None:
    """What an evaluation draws images for; `None`: the classes in turn.

    A run that is asked for several labels at once draws for those that stand together in test samples: scenes as the data set has them.
    """
    if "class" in model.conditions or "labels" not in model.conditions:
        return None
    return Prompt.cat([model.prompt_from_batch(batch.to(model.device), "labels") for batch in test])


def _check_classes(trained: DatasetCard, samples: Samples) -> None:
    for what in ("classes", "mask_classes"):
        own, other = getattr(trained, what), getattr(samples.card, what)
        number = next((n for n, pair in enumerate(zip_longest(own, other)) if pair[0] != pair[1]), None)
        if other and number is not None:
            known, found = (repr(names[number]) if number < len(names) else "none" for names in (own, other))
            raise ConfigError(
                f"{samples.folder}: number {number} of its {what} is {found}, where the run was trained on {known}; "
                f"a run can be tested on data whose dataset.json names the same {what} in the same order"
            )


def evaluate_run(
    run: Path,
    against: str | None,
    n: int | None,
    seed: int,
    device: str,
    progress: StageProgress,
    metrics: list[str] | None = None,
    checkpoint: str | None = None,
    assignments: list[str] | None = None,
    workers: int = 1,
    hire: WorkerPool | None = None,
    publish: Callable[[Path], None] | None = None,
) -> MetricReport:
    """Every metric of a run's checkpoint; against its own data, the numbers also go to its journal and its MLflow run.

    Args:
        against: another data set to test on, a folder or a URL.
        n: how many images are generated; default: the configuration's.
        metrics: which; default: all.
        checkpoint: which; default: the newest.
        assignments: `evaluate.KEY=VALUE` over the run's configuration.
        workers: processes that share the work, which `hire` provides.
        publish: called with the run's folder when the numbers are in its journal, such as `mtgen.report.refresh_report`.

    Raises:
        ConfigError: there is no such metric or setting, the extractor cannot be used, or the data set has other classes than the run.
    """
    check_names(metrics or [])
    folder = find_run(run)
    job = EvaluationJob(
        folder,
        against and absolute_location(against),
        n,
        seed,
        device,
        checkpoint,
        assignments=tuple(assignments or ()),
    )
    task = load_evaluation(job)
    work, config = task.work, task.model.config.model_copy(update={"workers": workers})
    if config.evaluate.extractor is not None:  # workers run in folders of their own
        place = f"evaluate.extractor.path={json.dumps(config.evaluate.extractor.path)}"
        job = replace(job, assignments=(*job.assignments, place))
    with hire(config, replace(job, images=task.images)) if hire and workers > 1 else nullcontext(work.stage) as gather:
        report = evaluate(
            task.model,
            work.test,
            work.train,
            samples=work.samples,
            seed=seed,
            metrics=metrics,
            extractor=config.evaluate.extractor,
            real=_real(task, folder),
            own=_own(task, folder),
            gather=gather,
            progress=progress,
        )
    if (
        against is None and (folder / JOURNAL_FILE).is_file()
    ):  # an exported model has none, nor have checkpoints that were copied
        try:
            _note_down(folder, config, task.images, report, publish)
        except UserError as error:
            print(f"warning: the numbers are not in the run's records: {error}", file=sys.stderr)
    return report


def _note_down(
    folder: Path, config: Config, images: int, report: MetricReport, publish: Callable[[Path], None] | None
) -> None:
    """An evaluation's numbers into the run's journal, its MLflow run and its page."""
    with closing(Journal(folder)) as journal:
        # Names of their own: MLflow has values of the quick metrics at this step already, of fewer samples.
        journal.row(images, {evaluated(name): value for name, value in report.items()})
    send_pending(config, folder)
    if publish is not None:
        publish(folder)


def _with(config: Config, assignments: list[str]) -> Config:
    if wrong := [text for text in assignments if not text.startswith("evaluate.")]:
        raise ConfigError(f"{wrong[0]}: a run that is trained cannot be changed; possible: evaluate.KEY=VALUE")
    values = config.model_dump(mode="json")
    override(values, assignments)
    return absolute(validate(values))


def _look(config: Config) -> dict[str, Any]:
    """How images are brought to the networks."""
    return {
        "size": list(config.size),
        "channels": config.data.channels,
        "boxes": config.data.max_boxes,
        "limit": config.data.max_samples,
    }


def _real(task: LoadedEvaluation, folder: Path) -> CacheScope:
    """Where features and readers of the training split are kept: in `cache/evaluation` beside the run, for all runs."""
    of = {"fingerprint": task.train.fingerprint, "split": task.train.split, **_look(task.model.config)}
    return CacheScope(TensorCache(folder.parent / "cache" / "evaluation"), of)


def _own(task: LoadedEvaluation, folder: Path) -> CacheScope:
    """Where it is kept how far an evaluation is: in `cache` within the run."""
    networks, data = task.model.networks, {split.split: split.fingerprint for split in (task.train, task.test)}
    of = {
        "model": [digest_of(networks.generator), digest_of(networks.side)],
        "data": data,
        **_look(task.model.config),
        **code_version(),
    }
    return CacheScope(TensorCache(folder / "cache"), of)
