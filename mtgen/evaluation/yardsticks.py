"""Readers that are independent of the model: trained on real training images, once an evaluation, and shared by all metrics."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from mtgen.evaluation.classifier import Classifier, reduced
from mtgen.evaluation.metric import Setting, Skipped, required_classes, required_mask_classes
from mtgen.evaluation.segmenter import Segmenter
from mtgen.schema import IGNORE, Batch

MOST = 8_000
"""Training images of a domain that are kept at most, a uniform choice of them."""
FEWEST = 10
"""Images a class that it takes to train a reader."""


def reduced_mask(mask: Tensor, like: Tensor) -> Tensor:
    """`[B,H,W]` mask classes -> uint8 on the CPU, of the size of the images `like` `[B,C,h,w]`."""
    size = like.shape[2:]
    if mask.shape[1:] == size:
        return mask.to("cpu", torch.uint8)
    return F.interpolate(mask[:, None].float(), size, mode="nearest-exact")[:, 0].to("cpu", torch.uint8)


class _Kept:
    """Small real images with class (-1: unknown) and mask, at most `MOST` (Vitter 1985, algorithm R)."""

    def __init__(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.rows: list[tuple[Tensor, int, Tensor]] = []
        self.seen = 0

    def add(self, image: Tensor, label: int, mask: Tensor) -> None:
        self.seen += 1
        place = self.seen - 1 if self.seen <= MOST else int(torch.randint(self.seen, (), generator=self.random))
        if place < MOST:
            self.rows[place : place + 1] = [(image.clone(), label, mask.clone())]

    def stacked(self) -> tuple[Tensor, Tensor, Tensor]:
        """Images `[N,C,h,w]` uint8, classes `[N]`, masks `[N,h,w]` uint8."""
        if not self.rows:
            raise Skipped("no real training image to train an independent reader on")
        image, label, mask = zip(*self.rows, strict=True)
        return torch.stack(image), torch.tensor(label), torch.stack(mask)


class Yardsticks:
    """A classifier for each domain (data set of a mixture) and for all together, and a segmenter, each trained when it is first asked for.

    Args:
        setting: of the evaluation.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.domains: dict[int, _Kept] = {}
        self._classifier = cache(self._train_classifier)
        self._segmenter = cache(self._train_segmenter)

    def update_train(self, batch: Batch) -> None:
        """Take in a part of the real training split."""
        image = reduced(batch.image)
        label = batch.label.where(batch.present["class"], -1).tolist()
        known = batch.present["mask"][:, None, None]
        mask = reduced_mask(batch.mask.where(known, torch.full_like(batch.mask, IGNORE)), image)
        domain = [0] * len(batch) if batch.domain is None else batch.domain.tolist()
        for row in range(len(batch)):
            self.domains.setdefault(domain[row], _Kept(self.setting.seed)).add(image[row], label[row], mask[row])

    def classifier(self, domain: int | None = None) -> Classifier:
        """The classifier of a domain, or of all.

        Raises:
            Skipped: it cannot be trained.
        """
        return self._classifier(domain)

    def read_class(self, image: Tensor, domain: int | None = None) -> Tensor:
        """Images `[B,C,H,W]` in [-1, 1] -> classes `[B]`, on the CPU, as the classifier of a domain (or of all) reads them.

        Raises:
            Skipped: it cannot be trained.
        """
        return self._classifier(domain).read(reduced(image))

    def read_mask(self, image: Tensor) -> Tensor:
        """Images `[B,C,H,W]` in [-1, 1] -> mask classes `[B,h,w]` uint8, on the CPU, with sides of 32 pixels at most."""
        return self._segmenter().read(reduced(image))

    def _progress(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self.setting.progress(what, done, total)

    def _all(self, domain: int | None) -> tuple[Tensor, Tensor, Tensor]:
        chosen = [kept for number, kept in sorted(self.domains.items()) if domain in (None, number)]
        parts = [kept.stacked() for kept in chosen] or [_Kept(0).stacked()]
        image, label, mask = (torch.cat(part) for part in zip(*parts, strict=True))
        return image, label, mask

    def _train_classifier(self, domain: int | None) -> Classifier:
        setting, classes = self.setting, required_classes(self.setting.card)
        image, label, _ = self._all(domain)
        image, label = image[label >= 0], label[label >= 0]
        if len(image) < FEWEST * classes:
            raise Skipped(f"it takes {FEWEST * classes} real training images with a class, {FEWEST} a class; there are {len(image)}")
        return Classifier(image, label, classes, setting.seed, setting.device, self._progress("train the independent classifier"))

    def _train_segmenter(self) -> Segmenter:
        setting, classes = self.setting, required_mask_classes(self.setting.card)
        image, _, mask = self._all(None)
        known = (mask != IGNORE).flatten(1).any(1)
        if int(known.sum()) < FEWEST * classes:
            raise Skipped(f"it takes {FEWEST * classes} real training images with a mask, {FEWEST} a class; there are {int(known.sum())}")
        made = Segmenter(
            image[known], mask[known], classes, setting.seed, setting.device, self._progress("train the independent segmenter")
        )
        return made
