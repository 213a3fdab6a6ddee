"""The work of an evaluation: what metrics take in, made from a model and real data; a worker makes its part of it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mtgen.evaluation.extractor import FeatureExtractor
from mtgen.models.model import Model
from mtgen.models.sampling import balanced_labels, generate
from mtgen.schema import Batch, Canvas, Prediction, Prompt
from mtgen.utils import counter_rng


@dataclass(frozen=True)
class RequestedOutputs:
    """What metrics take in beside the images themselves; nothing else is made.

    Attributes:
        predictions: what the model reads.
        reconstructions: of test images.
        rebuilt: features of the reconstructions.
        conditions: modalities by which test samples are asked for.
        shared: vectors in the shared representation space.
        translations: test images in other domains.
        extract: gives features; `None`: none are wanted.
    """

    predictions: bool = False
    reconstructions: bool = False
    rebuilt: bool = False
    conditions: tuple[str, ...] = ()
    shared: bool = False
    translations: bool = False
    extract: FeatureExtractor | None = None

    def features(self, image: Tensor) -> Tensor | None:
        """Images -> features `[B,D]`, where they are wanted."""
        return None if self.extract is None else self.extract(image)


@dataclass
class TrainFeatures:
    """Real training images, as features."""

    position: Tensor
    features: Tensor

    def __len__(self) -> int:
        return len(self.position)


@dataclass
class GeneratedPart:
    """Generated canvases, the classes asked for, and what is read in them."""

    position: Tensor
    canvas: Canvas
    labels: Tensor
    prediction: Prediction
    features: Tensor | None

    def __len__(self) -> int:
        return len(self.position)


@dataclass
class TestPart:
    """Real test samples and all that is made of them.

    Attributes:
        rebuilt: features of the images and those of their reconstructions.
        conditions: modality, the samples that have it, and what is drawn when they are asked for by it alone.
        shared: images `[B,d]`, and each modality's vectors `[B,d]` and which are there.
        translations: domain, samples of other domains, and their images in it.
    """

    batch: Batch
    prediction: Prediction
    reconstruction: Canvas | None = None
    features: Tensor | None = None
    rebuilt: tuple[Tensor, Tensor] | None = None
    conditions: list[tuple[str, Batch, Canvas]] = field(default_factory=list)
    shared: tuple[Tensor, dict[str, tuple[Tensor, Tensor]]] | None = None
    translations: list[tuple[int, Batch, Canvas]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.batch)


StreamPart = Batch | TrainFeatures | GeneratedPart | TestPart
StreamSource = Callable[[str, RequestedOutputs, int], Iterator[StreamPart]]
"""(name of one of `StreamProducer`'s stages, what is wanted, n) -> the parts of that stage but for the first n, in the order of their positions."""


@runtime_checkable
class SeekableBatches(Protocol):
    """A worker's batches of a split, each time they are gone through, that can begin later than with the first without making it."""

    def since(self, start: int) -> Iterator[Batch]:
        """Those that are left without the first `start` of all workers' batches."""
        ...


def _since(batches: Iterable[Batch] | SeekableBatches | None, start: int) -> Iterator[Batch]:
    return batches.since(start) if isinstance(batches, SeekableBatches) else islice(batches or (), start, None)


class StreamProducer:
    """One worker's part of every stage. What it makes is a function of model, data, seed and position, not of the number of workers.

    Args:
        test: this worker's part of the test split.
        train: the same of the training split, which may be gone through twice; `None` where there is none.
        samples: how many images all workers generate.
        asked: what for, its rows in turn; `None`: the classes in turn.
        batch_size: images of a part.
    """

    def __init__(
        self,
        model: Model,
        test: Iterable[Batch],
        train: Iterable[Batch] | None,
        *,
        samples: int,
        seed: int,
        asked: Prompt | None = None,
        batch_size: int = 100,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.model = model
        self.test = test
        self.train = train
        self.asked = asked
        self.samples = samples
        self.seed = seed
        self.batch_size = batch_size
        self.rank = rank
        self.world = world

    def stage(self, name: str, wanted: RequestedOutputs, start: int = 0) -> Iterator[StreamPart]:
        """The parts of the stage "read", "seen", "generated" or "tested" from number `start` on; it is a `StreamSource` of one worker."""
        return getattr(self, name)(wanted, start)

    def read(self, wanted: RequestedOutputs, start: int) -> Iterator[Batch]:
        """The training split."""
        return _since(self.train, start)

    def seen(self, wanted: RequestedOutputs, start: int) -> Iterator[TrainFeatures]:
        """The training split, as features."""
        for batch in _since(self.train, start):
            features = wanted.features(batch.image.to(self.model.device))
            if features is not None:
                yield TrainFeatures(batch.position, features)

    def generated(self, wanted: RequestedOutputs, start: int) -> Iterator[GeneratedPart]:
        """Generated images, of what is asked for in turn."""
        labels = balanced_labels(self.samples, [] if self.asked else list(range(len(self.model.card.classes))))
        prompt, dealt = (
            self.asked or Prompt.of_classes(labels),
            {"rank": self.rank, "world": self.world, "start": start},
        )
        for canvas, rows in generate(
            self.model, prompt, self.seed, "evaluate", self.batch_size, n=self.samples, **dealt
        ):
            asked = labels[rows].to(self.model.device)
            yield GeneratedPart(rows, canvas, asked, self._read(wanted, canvas.image), wanted.features(canvas.image))

    def tested(self, wanted: RequestedOutputs, start: int) -> Iterator[TestPart]:
        """The test split, and what the model makes of it."""
        for batch in _since(self.test, start):
            here = batch.to(self.model.device)
            made = TestPart(here, self._read(wanted, here.image), features=wanted.features(here.image))
            if wanted.reconstructions:
                labels = here.label.where(here.present["class"], -1)
                with torch.no_grad():
                    made.reconstruction = self.model.reconstruct(here.image, Prompt.of_classes(labels))
            if (
                wanted.rebuilt
                and wanted.extract is not None
                and made.reconstruction is not None
                and made.features is not None
            ):
                made.rebuilt = made.features, wanted.extract(_within_picture(made.reconstruction).image)
            made.conditions = [part for name in wanted.conditions for part in self._condition(here, name)]
            if wanted.shared:
                made.shared = self._shared(here)
            if wanted.translations:
                made.translations = list(self._translations(here))
            yield made

    def _read(self, wanted: RequestedOutputs, image: Tensor) -> Prediction:
        if not wanted.predictions:
            return Prediction()
        with torch.no_grad():
            return self.model.predict(image)

    def _latent(self, batch: Batch, purpose: str) -> Tensor:
        return counter_rng.normal(self.seed, purpose, batch.position, (self.model.latent_size,), self.model.device)

    def _condition(self, batch: Batch, name: str) -> Iterator[tuple[str, Batch, Canvas]]:
        with torch.no_grad():
            prompt = self.model.prompt_from_batch(batch, name)
            rows = prompt.given[name].nonzero().flatten()
            if len(rows):
                asked = batch.rows(rows.cpu())
                canvas = self.model.sample(prompt.rows(rows), self._latent(asked, f"evaluate condition {name}"))
                yield name, asked, _within_picture(canvas)

    def _shared(self, batch: Batch) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]] | None:
        with torch.no_grad():
            image, asked = self.model.predict(batch.image).embedding, {}
            if image is None:
                return None
            for name in self.model.conditions:
                if name in ("class", "caption", "sound"):
                    prompt = self.model.prompt_from_batch(batch, name)
                    asked[name] = (self.model.embed(prompt), prompt.given[name])
        return image, asked

    def _translations(self, batch: Batch) -> Iterator[tuple[int, Batch, Canvas]]:
        """Every sample into every domain but its own; with classes as domains, the samples whose class is known."""
        model, kind = self.model, str(self.model.translates)
        if kind == "class":
            own, domains = batch.label.where(batch.present["class"], -1), range(len(model.card.classes))
        else:
            own, domains = (
                torch.zeros_like(batch.label) if batch.domain is None else batch.domain,
                range(len(model.card.domains)),
            )
        for to in domains:
            rows = ((own != to) & (own >= 0)).nonzero().flatten()
            if len(rows):
                others = batch.rows(rows.cpu())
                number, there = torch.full_like(rows, to), torch.ones_like(rows, dtype=torch.bool)
                with torch.no_grad():
                    latent = self._latent(others, "evaluate translation")
                    canvas = model.translate(others.image, Prompt(len(rows), {kind: number}, {kind: there}), latent)
                if canvas is not None:
                    yield to, others, _within_picture(canvas)


def _within_picture(canvas: Canvas) -> Canvas:
    return replace(canvas, image=canvas.image.float().clamp(-1, 1))


def on_cpu(part: Any) -> Any:
    """A part, or anything in it, with its tensors on the CPU: what travels between processes."""
    if isinstance(part, Tensor):
        return part.cpu()
    if isinstance(part, list | tuple):
        return type(part)(on_cpu(one) for one in part)
    if isinstance(part, dict):
        return {name: on_cpu(one) for name, one in part.items()}
    if is_dataclass(part) and not isinstance(part, type):
        return replace(part, **{f.name: on_cpu(getattr(part, f.name)) for f in fields(part)})
    return part
