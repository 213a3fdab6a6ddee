"""Independent networks that judge generated images: trained on real training images alone, once an evaluation."""

from collections.abc import Callable

import torch
from torch import Tensor

from mtgen.evaluation import segmenter
from mtgen.evaluation.classifier import Classifier, reduced
from mtgen.evaluation.reservoir import Reservoir
from mtgen.evaluation.segmenter import Segmenter, reduced_mask
from mtgen.evaluation.skipped import Skipped
from mtgen.schema import Batch, DatasetCard

KEPT = 10_000
"""Training images that a judge learns from, at most."""
FEWEST = 10
"""Images a class that it takes to train a classifier; as many images in all for a segmenter."""


class Judges:
    """Keeps training images for the judges that metrics want, and trains each when it is first asked for.

    A metric says what it wants before the training split is read (`want_classifier`, `want_segmenter`).
    """

    def __init__(self, card: DatasetCard, seed: int, device: torch.device, progress: Callable[[str, int, int | None], None]) -> None:
        self.card, self.seed, self.device, self.progress = card, seed, device, progress
        self._images: dict[int | None, Reservoir[tuple[Tensor, int]]] = {}
        self._masks: Reservoir[tuple[Tensor, Tensor]] | None = None
        self._classifiers: dict[int | None, Classifier] = {}
        self._segmenter: Segmenter | None = None

    @property
    def wanted(self) -> bool:
        """Whether any judge is wanted."""
        return bool(self._images) or self._masks is not None

    def want_classifier(self, domain: int | None = None) -> None:
        """Keep images with a class: of one data set of a mixture, or of all of them (`None`)."""
        self._images.setdefault(domain, Reservoir(KEPT, self.seed))

    def want_segmenter(self) -> None:
        """Keep images with a mask."""
        self._masks = self._masks or Reservoir(KEPT, self.seed)

    def update_train(self, batch: Batch) -> None:
        """Take in a part of the real training split."""
        if self._images:
            rows = batch.present["class"]
            domains = torch.zeros(len(batch), dtype=torch.int64) if batch.domain is None else batch.domain
            labelled = zip(reduced(batch.image[rows]), batch.label[rows].tolist(), domains[rows.to(domains.device)].tolist(), strict=True)
            for image, label, domain in labelled:
                for which, kept in self._images.items():
                    if which in (None, domain):
                        kept.add((image.clone(), label))
        if self._masks is not None:
            rows = batch.present["mask"]
            images = segmenter.reduced(batch.image[rows])
            for pair in zip(images, reduced_mask(batch.mask[rows], images.shape[2:]), strict=True):
                self._masks.add((pair[0].clone(), pair[1].clone()))

    def classifier(self, domain: int | None = None) -> Classifier:
        """The classifier of a domain's real images, or of all.

        Raises:
            Skipped: there are too few of them.
        """
        if domain not in self._classifiers:
            kept, classes = self._images[domain].items, len(self.card.classes)
            where = "" if domain is None or domain >= len(self.card.domains) else f" of {self.card.domains[domain]!r}"
            if len(kept) < FEWEST * classes:
                needed = f"{FEWEST * classes} real training images{where} with a class, {FEWEST} a class"
                raise Skipped(f"the independent classifier takes {needed}; there are {len(kept)}")
            image, label = torch.stack([one for one, _ in kept]), torch.tensor([number for _, number in kept])
            self._images[domain].items = []
            stage = f"train a classifier on real images{where}"
            self._classifiers[domain] = Classifier(image, label, classes, self.seed, self.device, lambda n, of: self.progress(stage, n, of))
        return self._classifiers[domain]

    def segmenter(self) -> Segmenter:
        """The segmenter of real images.

        Raises:
            Skipped: there are too few of them with a mask.
        """
        if self._segmenter is None:
            assert self._masks is not None  # a metric wanted it
            kept = self._masks.items
            if len(kept) < FEWEST:
                raise Skipped(f"the independent segmenter takes {FEWEST} real training images with a mask; there are {len(kept)}")
            image, mask = (torch.stack(part) for part in zip(*kept, strict=True))
            self._masks.items = []
            self._segmenter = Segmenter(
                image,
                mask,
                len(self.card.mask_classes),
                self.seed,
                self.device,
                lambda n, of: self.progress("train a segmenter on real images", n, of),
            )
        return self._segmenter
