"""Retrieval in the shared representation space: whether what belongs together is nearest."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mtgen.evaluation.base import MetricContext, Skipped, Stream, required_classes, required_condition
from mtgen.evaluation.collectors.base import State
from mtgen.evaluation.collectors.row_buffer import RowBuffer
from mtgen.evaluation.metric import METRICS, Metric
from mtgen.schema import Batch

Modalities = dict[str, tuple[Tensor, Tensor]]
"""Modality -> embeddings `[B,d]`, and which samples have it, `[B]` bool."""


def nearest(query: Tensor, among: Tensor, chunk: int = 1024) -> Tensor:
    """`[Q,d]`, `[N,d]` -> `[Q]`: index of the candidate with the largest cosine, for each query."""
    among = F.normalize(among, dim=1)
    return torch.cat([(F.normalize(part, dim=1) @ among.T).argmax(1) for part in query.split(chunk)])


class _ClassEmbeddings:
    """The embedding of each class, from the first sample that has it."""

    def __init__(self) -> None:
        self.embeddings: dict[int, Tensor] = {}

    def update(self, label: Tensor, embedding: Tensor) -> None:
        """Take in classes `[B]` and their embeddings `[B,d]`."""
        for number, vector in zip(label.tolist(), embedding, strict=True):
            self.embeddings.setdefault(number, vector.float().cpu())

    def state_dict(self) -> State:
        return {str(number): vector for number, vector in self.embeddings.items()}

    def load_state_dict(self, state: State) -> None:
        self.embeddings = {int(number): vector for number, vector in state.items()}


class _RetrievalToClass(Metric):
    """Fraction of test samples whose embedding is nearest to their own class, among the classes of the test split."""

    streams = (Stream.EMBEDDINGS,)
    quick = False
    source: str

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        required_classes(context.card)
        required_condition(context, "class")
        if self.source != "image":
            required_condition(context, self.source)
        self.classes = self.add_state("classes", _ClassEmbeddings())
        self.queries = self.add_state("queries", RowBuffer())

    def update_embeddings(self, batch: Batch, image: Tensor, modalities: Modalities) -> None:
        class_embedding, labeled = modalities["class"]
        self.classes.update(batch.label[labeled], class_embedding[labeled])
        query, known = (image, labeled) if self.source == "image" else modalities[self.source]
        both = known & labeled
        self.queries.append(query[both].float(), batch.label[both])

    def compute(self) -> dict[str, float]:
        if not len(self.queries):
            raise Skipped(
                f"no test sample has a class and an embedding of its {self.source}, or the run has no alignment"
            )
        query, label = self.queries.columns()
        numbers = sorted(self.classes.embeddings)
        candidates = torch.stack([self.classes.embeddings[number] for number in numbers])
        predicted = torch.tensor(numbers)[nearest(query, candidates)]
        return {f"retrieval/{self.source}_to_class": float((predicted == label).double().mean())}


@METRICS.register("retrieval/sound_to_class")
class SoundToClass(_RetrievalToClass):
    """Recordings among the classes."""

    numbers = {"retrieval/sound_to_class": "higher"}
    source = "sound"


@METRICS.register("retrieval/image_to_class")
class ImageToClass(_RetrievalToClass):
    """Images among the classes."""

    numbers = {"retrieval/image_to_class": "higher"}
    source = "image"


@METRICS.register("retrieval/caption_to_image")
class CaptionToImage(Metric):
    """Recall at 1 of test captions among all test images; an image with an identical caption counts as correct.

    Holds two embeddings and a caption per test sample. Source: Radford et al. 2021 (retrieval).
    """

    numbers = {"retrieval/caption_to_image": "higher"}
    streams = (Stream.EMBEDDINGS,)
    quick = False

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        required_condition(context, "caption")
        self.samples = self.add_state("samples", RowBuffer())

    def update_embeddings(self, batch: Batch, image: Tensor, modalities: Modalities) -> None:
        caption_embedding, known = modalities["caption"]
        assert batch.caption is not None  # the run has the condition "caption"
        self.samples.append(caption_embedding[known].float(), image[known].float(), batch.caption[known])

    def compute(self) -> dict[str, float]:
        if not len(self.samples):
            raise Skipped("no test sample has a caption, or the run has no alignment")
        query, image, caption = self.samples.columns()
        correct = (caption[nearest(query, image)] == caption).all(1)
        return {"retrieval/caption_to_image": float(correct.double().mean())}
