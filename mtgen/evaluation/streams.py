"""Production of what metrics take in, from a model and real data; each worker produces its own part of every stage."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import islice
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mtgen.evaluation.extractor import FeatureExtractor
from mtgen.models.model import Model
from mtgen.models.sampling import balanced_labels, generate
from mtgen.schema import Batch, Canvas, Prediction, Prompt
from mtgen.utils import counter_rng


class Stage(StrEnum):
    """The passes of an evaluation over its data, in this order."""

    TRAIN = "train"
    """The training split."""
    TRAIN_FEATURES = "train_features"
    """Features of the training split."""
    GENERATED = "generated"
    """Generated images."""
    TEST = "test"
    """The test split with all outputs of the model on it."""


@dataclass(frozen=True)
class RequestedOutputs:
    """The outputs of a stage that metrics need besides the images; nothing else is computed.

    Attributes:
        predictions: the model's predictions.
        reconstructions: reconstructions of test images.
        reconstruction_features: features of the reconstructions.
        conditions: modalities of test samples to condition generated images on.
        embeddings: test samples in the shared representation space.
        translations: test images translated into the other domains.
        extractor: computes features; `None`: no features are needed.
    """

    predictions: bool = False
    reconstructions: bool = False
    reconstruction_features: bool = False
    conditions: tuple[str, ...] = ()
    embeddings: bool = False
    translations: bool = False
    extractor: FeatureExtractor | None = None

    def features(self, image: Tensor) -> Tensor | None:
        """Images -> features `[B,D]`, or `None` where they are not needed."""
        return None if self.extractor is None else self.extractor(image)


@dataclass
class TrainFeatures:
    """Features `[B,D]` of real training images at the positions `[B]`."""

    position: Tensor
    features: Tensor

    def __len__(self) -> int:
        return len(self.position)


@dataclass
class GeneratedPart:
    """Generated canvases, the classes `[B]` that they are conditioned on, and the model's predictions on them."""

    position: Tensor
    canvas: Canvas
    labels: Tensor
    prediction: Prediction
    features: Tensor | None

    def __len__(self) -> int:
        return len(self.position)


@dataclass
class ConditionPart:
    """Test samples that have a modality, and the canvases conditioned on that modality alone."""

    name: str
    batch: Batch
    canvas: Canvas


@dataclass
class EmbeddingPart:
    """Embeddings of images `[B,d]`, and of each modality: `[B,d]`, and which samples have it, `[B]` bool."""

    image: Tensor
    modalities: dict[str, tuple[Tensor, Tensor]]


@dataclass
class TranslationPart:
    """Test samples of other domains, and their translations into a domain."""

    domain: int
    batch: Batch
    canvas: Canvas


@dataclass
class TestPart:
    """Real test samples and the model's outputs on them.

    Attributes:
        reconstruction_features: features of the reconstructions; those of the images are in `features`.
    """

    batch: Batch
    prediction: Prediction
    features: Tensor | None = None
    reconstruction: Canvas | None = None
    reconstruction_features: Tensor | None = None
    conditions: list[ConditionPart] = field(default_factory=list)
    embeddings: EmbeddingPart | None = None
    translations: list[TranslationPart] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.batch)


StreamPart = Batch | TrainFeatures | GeneratedPart | TestPart
"""One part of the stage "train", "train_features", "generated" or "test"."""
StreamSource = Callable[[Stage, RequestedOutputs, int], Iterator[StreamPart]]
"""(stage, outputs, n) -> the parts of the stage after the first n, in the order of their positions."""


@runtime_checkable
class SeekableBatches(Protocol):
    """A worker's batches of a split, iterable any number of times, from any of them on."""

    def since(self, start: int) -> Iterator[Batch]:
        """The batches after the first `start` of each worker."""
        ...


def _since(batches: Iterable[Batch] | SeekableBatches | None, start: int) -> Iterator[Batch]:
    return batches.since(start) if isinstance(batches, SeekableBatches) else islice(batches or (), start, None)


class StreamProducer:
    """One worker's part of every stage. A part depends on model, data, seed and position, not on the number of workers.

    Args:
        test: this worker's batches of the test split.
        train: this worker's batches of the training split, iterated at most twice; `None` where there is none.
        samples: number of images that all workers generate together.
        prompts: what generated images are conditioned on, cycling through the rows; `None`: cycling through the
            classes.
        batch_size: images per part.
    """

    def __init__(
        self,
        model: Model,
        test: Iterable[Batch],
        train: Iterable[Batch] | None,
        *,
        samples: int,
        seed: int,
        prompts: Prompt | None = None,
        batch_size: int = 100,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.model = model
        self.test = test
        self.train = train
        self.prompts = prompts
        self.samples = samples
        self.seed = seed
        self.batch_size = batch_size
        self.rank = rank
        self.world = world

    def parts(self, stage: Stage, outputs: RequestedOutputs, start: int = 0) -> Iterator[StreamPart]:
        """The parts of a stage from number `start` on; a `StreamSource` of one worker."""
        match stage:
            case Stage.TRAIN:
                return _since(self.train, start)
            case Stage.TRAIN_FEATURES:
                return self._train_features(outputs, start)
            case Stage.GENERATED:
                return self._generated(outputs, start)
            case Stage.TEST:
                return self._tested(outputs, start)

    def _train_features(self, outputs: RequestedOutputs, start: int) -> Iterator[TrainFeatures]:
        for batch in _since(self.train, start):
            features = outputs.features(batch.image.to(self.model.device))
            if features is not None:
                yield TrainFeatures(batch.position, features)

    def _generated(self, outputs: RequestedOutputs, start: int) -> Iterator[GeneratedPart]:
        labels = balanced_labels(self.samples, [] if self.prompts else list(range(len(self.model.card.classes))))
        batches = generate(
            self.model,
            self.prompts or Prompt.of_classes(labels),
            self.seed,
            "evaluate",
            self.batch_size,
            n=self.samples,
            rank=self.rank,
            world=self.world,
            start=start,
        )
        for canvas, rows in batches:
            prediction = self._predict(outputs, canvas.image)
            yield GeneratedPart(
                rows, canvas, labels[rows].to(self.model.device), prediction, outputs.features(canvas.image)
            )

    def _tested(self, outputs: RequestedOutputs, start: int) -> Iterator[TestPart]:
        for cpu_batch in _since(self.test, start):
            batch = cpu_batch.to(self.model.device)
            part = TestPart(batch, self._predict(outputs, batch.image), outputs.features(batch.image))
            if outputs.reconstructions:
                labels = batch.label.where(batch.present["class"], -1)
                with torch.no_grad():
                    part.reconstruction = self.model.reconstruct(batch.image, Prompt.of_classes(labels))
            if outputs.reconstruction_features and part.reconstruction is not None:
                part.reconstruction_features = outputs.features(_clamped(part.reconstruction).image)
            for name in outputs.conditions:
                part.conditions += self._condition(batch, name)
            if outputs.embeddings:
                part.embeddings = self._embeddings(batch)
            if outputs.translations:
                part.translations = list(self._translations(batch))
            yield part

    def _predict(self, outputs: RequestedOutputs, image: Tensor) -> Prediction:
        if not outputs.predictions:
            return Prediction()
        with torch.no_grad():
            return self.model.predict(image)

    def _latent(self, batch: Batch, purpose: str) -> Tensor:
        return counter_rng.normal(self.seed, purpose, batch.position, (self.model.latent_size,), self.model.device)

    def _condition(self, batch: Batch, name: str) -> list[ConditionPart]:
        with torch.no_grad():
            prompt = self.model.prompt_from_batch(batch, name)
            rows = prompt.given[name].nonzero().flatten()
            if not len(rows):
                return []
            chosen = batch.rows(rows.cpu())
            canvas = self.model.sample(prompt.rows(rows), self._latent(chosen, f"evaluate condition {name}"))
        return [ConditionPart(name, chosen, _clamped(canvas))]

    def _embeddings(self, batch: Batch) -> EmbeddingPart | None:
        with torch.no_grad():
            image = self.model.predict(batch.image).embedding
            if image is None:
                return None
            modalities = {}
            for name in self.model.conditions:
                if name in ("class", "caption", "sound"):
                    prompt = self.model.prompt_from_batch(batch, name)
                    modalities[name] = (self.model.embed(prompt), prompt.given[name])
        return EmbeddingPart(image, modalities)

    def _translations(self, batch: Batch) -> Iterator[TranslationPart]:
        """Every sample in every domain except its own; with classes as domains, the samples whose class is known."""
        model, kind = self.model, str(self.model.translates)
        if kind == "class":
            own = batch.label.where(batch.present["class"], -1)
            domains = len(model.card.classes)
        else:
            own = torch.zeros_like(batch.label) if batch.domain is None else batch.domain
            domains = len(model.card.domains)
        for domain in range(domains):
            rows = ((own != domain) & (own >= 0)).nonzero().flatten()
            if len(rows):
                others = batch.rows(rows.cpu())
                target, given = torch.full_like(rows, domain), torch.ones_like(rows, dtype=torch.bool)
                with torch.no_grad():
                    latent = self._latent(others, "evaluate translation")
                    canvas = model.translate(others.image, Prompt(len(rows), {kind: target}, {kind: given}), latent)
                if canvas is not None:
                    yield TranslationPart(domain, others, _clamped(canvas))


def _clamped(canvas: Canvas) -> Canvas:
    """A canvas whose image is in [-1, 1]."""
    return replace(canvas, image=canvas.image.float().clamp(-1, 1))


def to_cpu(part: StreamPart) -> StreamPart:
    """A part with all its tensors on the CPU, to send it to another process."""
    match part:
        case Batch():
            return part.to("cpu")
        case TrainFeatures():
            return TrainFeatures(part.position.cpu(), part.features.cpu())
        case GeneratedPart():
            return GeneratedPart(
                part.position.cpu(),
                part.canvas.map(Tensor.cpu),
                part.labels.cpu(),
                _prediction_to_cpu(part.prediction),
                _optional_to_cpu(part.features),
            )
        case TestPart():
            return TestPart(
                part.batch.to("cpu"),
                _prediction_to_cpu(part.prediction),
                _optional_to_cpu(part.features),
                None if part.reconstruction is None else part.reconstruction.map(Tensor.cpu),
                _optional_to_cpu(part.reconstruction_features),
                [ConditionPart(c.name, c.batch.to("cpu"), c.canvas.map(Tensor.cpu)) for c in part.conditions],
                None if part.embeddings is None else _embeddings_to_cpu(part.embeddings),
                [TranslationPart(t.domain, t.batch.to("cpu"), t.canvas.map(Tensor.cpu)) for t in part.translations],
            )


def _optional_to_cpu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.cpu()


def _prediction_to_cpu(prediction: Prediction) -> Prediction:
    posterior = prediction.posterior
    return Prediction(
        class_logits=_optional_to_cpu(prediction.class_logits),
        label_logits=_optional_to_cpu(prediction.label_logits),
        mask_logits=_optional_to_cpu(prediction.mask_logits),
        boxes=_optional_to_cpu(prediction.boxes),
        posterior=None if posterior is None else (posterior[0].cpu(), posterior[1].cpu()),
        embedding=_optional_to_cpu(prediction.embedding),
        content=_optional_to_cpu(prediction.content),
    )


def _embeddings_to_cpu(part: EmbeddingPart) -> EmbeddingPart:
    modalities = {name: (vectors.cpu(), given.cpu()) for name, (vectors, given) in part.modalities.items()}
    return EmbeddingPart(part.image.cpu(), modalities)
