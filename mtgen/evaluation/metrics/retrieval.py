"""Whether what belongs together lies nearest in the shared representation space."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mtgen.evaluation.metric import METRICS, Metric, MetricContext, required_classes, required_condition, share
from mtgen.schema import Batch

Asked = dict[str, tuple[Tensor, Tensor]]


def nearest(query: Tensor, among: Tensor, at_once: int = 1024) -> Tensor:
    """`[Q,d]`, `[N,d]` -> `[Q]`: which of the N has the largest cosine with each query."""
    among = F.normalize(among, dim=1)
    return torch.cat([(F.normalize(part, dim=1) @ among.T).argmax(1) for part in query.split(at_once)])


class _ToClass(Metric):
    """Share of test samples whose vector lies nearest to the vector of their own class, among the classes of the test split."""

    quick = False
    source: str

    def __init__(self, setting: MetricContext) -> None:
        super().__init__(setting)
        self.classes: dict[int, Tensor] = {}
        required_classes(setting.card)
        required_condition(setting, "class")
        if self.source != "image":
            required_condition(setting, self.source)
        self.query: list[Tensor] = []
        self.label: list[Tensor] = []

    def update_shared(self, batch: Batch, image: Tensor, asked: Asked) -> None:
        vector, there = asked["class"]
        for row in there.nonzero().flatten().tolist():
            self.classes.setdefault(int(batch.label[row]), vector[row].float().cpu())
        query, known = (image, there) if self.source == "image" else asked[self.source]
        both = known & there
        self.query.append(query[both].float().cpu())
        self.label.append(batch.label[both].cpu())

    def compute(self) -> dict[str, float]:
        total = sum(len(label) for label in self.label)
        share(0, total, f"test sample has a class and a vector of its {self.source}, or the run aligns nothing")
        numbers = sorted(self.classes)
        found = torch.tensor(numbers)[nearest(torch.cat(self.query), torch.stack([self.classes[n] for n in numbers]))]
        return {f"retrieval/{self.source}_to_class": float((found == torch.cat(self.label)).double().mean())}


@METRICS.register("retrieval/sound_to_class")
class SoundToClass(_ToClass):
    """Recordings among class vectors."""

    numbers = {"retrieval/sound_to_class": "higher"}
    source = "sound"


@METRICS.register("retrieval/image_to_class")
class ImageToClass(_ToClass):
    """Images among class vectors."""

    numbers = {"retrieval/image_to_class": "higher"}
    source = "image"


@METRICS.register("retrieval/caption_to_image")
class CaptionToImage(Metric):
    """Recall at 1 of test captions among all test images; an image with the very same caption is right too.

    Holds a vector and a caption for each test sample, no images. Source: Radford et al. 2021 (retrieval).
    """

    numbers = {"retrieval/caption_to_image": "higher"}
    quick = False

    def __init__(self, setting: MetricContext) -> None:
        super().__init__(setting)
        required_condition(setting, "caption")
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def update_shared(self, batch: Batch, image: Tensor, asked: Asked) -> None:
        vector, there = asked["caption"]
        assert batch.caption is not None  # the run is asked by captions
        self.rows.append((vector[there].float().cpu(), image[there].float().cpu(), batch.caption[there].cpu()))

    def compute(self) -> dict[str, float]:
        share(0, sum(len(row[0]) for row in self.rows), "test sample has a caption, or the run aligns nothing")
        query, image, caption = (torch.cat(part) for part in zip(*self.rows, strict=True))
        right = (caption[nearest(query, image)] == caption).all(1)
        return {"retrieval/caption_to_image": float(right.double().mean())}
