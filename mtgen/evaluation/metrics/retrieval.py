"""Whether images and what they can be asked for by lie together in the shared representation space."""

import torch
from torch import Tensor

from mtgen.evaluation.metric import METRICS, Metric, Setting, Skipped, required_classes, share
from mtgen.schema import Batch

PAIRS = 5_000
"""Test images that are searched in, at most (as many as in COCO's usual retrieval split)."""


class _ToClass(Metric):
    """Share of the test samples with a class that lie nearest, by cosine, to the vector of their own class."""

    modality: str

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        required_classes(setting.card)
        _required(setting, "class", self.modality)
        self.right = self.total = 0

    def update_embedded(self, batch: Batch, embedded: dict[str, Tensor]) -> None:
        rows = batch.present["class"] & batch.present.get(self.modality, torch.ones_like(batch.present["class"]))
        nearest = (embedded[self.modality][rows] @ embedded["classes"].T).argmax(1)
        self.right += int((nearest == batch.label[rows]).sum())
        self.total += int(rows.sum())

    def compute(self) -> dict[str, float]:
        what = f"test sample carries a class and {'an' if self.modality == 'image' else 'a'} {self.modality}"
        return {f"retrieval/{self.modality}_to_class": share(self.right, self.total, what)}


@METRICS.register("retrieval/image_to_class")
class ImageToClass(_ToClass):
    """Classification in the shared space: the class whose vector is nearest to the image's."""

    modality = "image"


@METRICS.register("retrieval/sound_to_class")
class SoundToClass(_ToClass):
    """The class whose vector is nearest to a recording's."""

    modality = "sound"


@METRICS.register("retrieval/caption_to_image")
class CaptionAndImage(Metric):
    """R@1 and R@5: share of the queries that find something right among their 1 and 5 nearest, by cosine.

    A caption's right images are all with just the same caption; an image's captions are the different ones of the split. The first
    `PAIRS` test samples with a caption are kept, as vectors.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        _required(setting, "caption")
        self.image: list[Tensor] = []
        self.caption: list[Tensor] = []
        self.tokens: list[Tensor] = []
        self.kept = 0

    def update_embedded(self, batch: Batch, embedded: dict[str, Tensor]) -> None:
        assert batch.caption is not None  # the loader was asked for captions
        rows = batch.present["caption"].nonzero()[: PAIRS - self.kept, 0]
        parts = (self.image, embedded["image"]), (self.caption, embedded["caption"]), (self.tokens, batch.caption)
        for kept, values in parts:
            kept.append(values[rows].cpu())
        self.kept += len(rows)

    def compute(self) -> dict[str, float]:
        if not self.kept:
            raise Skipped("no test sample carries a caption")
        image, tokens = torch.cat(self.image), torch.cat(self.tokens)
        different, which = tokens.unique(dim=0, return_inverse=True)
        first = torch.stack([(which == number).nonzero()[0, 0] for number in range(len(different))])
        caption = torch.cat(self.caption)[first]
        right = which[:, None] == torch.arange(len(different))
        values = {}
        asked = torch.bincount(which, minlength=len(different)).double()  # a caption is asked for as often as it comes
        for k in (1, 5):
            found = right.T.gather(1, (caption @ image.T).topk(min(k, len(image))).indices).any(1)
            values[f"retrieval/caption_to_image_r{k}"] = float((found * asked).sum() / asked.sum())
            nearest = (image @ caption.T).topk(min(k, len(caption))).indices
            values[f"retrieval/image_to_caption_r{k}"] = right.gather(1, nearest).any(1).double().mean().item()
        return values


def _required(setting: Setting, *modalities: str) -> None:
    for name in modalities:
        if name != "image" and name not in setting.conditions:
            raise Skipped(f"the run was not trained on the condition {name!r}")
