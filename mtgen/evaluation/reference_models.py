"""Readers that are independent of the model: trained on real training images, once an evaluation, and shared by all metrics."""

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mtgen.evaluation.classifier import Classifier, shrink_images
from mtgen.evaluation.detector import Detector
from mtgen.evaluation.metric import MetricContext, Skipped, required_classes, required_mask_classes
from mtgen.evaluation.reader_training import MIN_IMAGES_PER_CLASS, TrainingSpec
from mtgen.evaluation.segmenter import Segmenter, shrink_mask
from mtgen.evaluation.subsample import Choice
from mtgen.schema import IGNORE_INDEX, Batch

MAX_IMAGES_PER_DOMAIN = 8_000
"""Training images of a domain that are kept at most, a uniform choice of them."""
TRAINING_LENGTH_FACTOR = 3
"""How many times as long segmenter and detector are trained as readers of one evaluation: they are kept, and judge others."""


class ReferenceModels:
    """A classifier for each domain (data set of a mixture) and for all together, a segmenter, a detector; trained when first asked for.

    Args:
        setting: of the evaluation.
    """

    def __init__(self, setting: MetricContext) -> None:
        self.setting = setting
        self.domains: dict[int, Choice] = {}
        self._classifier = cache(self._train_classifier)
        self._segmenter = cache(self._train_segmenter)
        self._detector = cache(self._train_detector)

    def update_train(self, batch: Batch) -> None:
        """Take in a part of the real training split."""
        image = shrink_images(batch.image)
        label = batch.label.where(batch.present["class"], -1).cpu()
        known = batch.present["mask"][:, None, None]
        mask = shrink_mask(batch.mask.where(known, torch.full_like(batch.mask, IGNORE_INDEX)), image)
        boxes = torch.zeros(len(batch), 0, 5) if batch.boxes is None else batch.boxes.cpu()
        located = torch.zeros(len(batch), dtype=torch.bool) if batch.boxes is None else batch.present["boxes"].cpu()
        domain = torch.zeros(len(batch), dtype=torch.int64) if batch.domain is None else batch.domain.cpu()
        for number in domain.unique().tolist():
            of = domain == number
            rows = (part[of] for part in (image, label, mask, boxes, located))
            self.domains.setdefault(number, Choice(MAX_IMAGES_PER_DOMAIN)).update(*rows, position=batch.position[of])

    def classifier(self, domain: int | None = None) -> Classifier:
        """The classifier of a domain, or of all.

        Raises:
            Skipped: it cannot be trained.
        """
        return self._classifier(domain)

    def predict_class(self, image: Tensor, domain: int | None = None) -> Tensor:
        """Images `[B,C,H,W]` in [-1, 1] -> classes `[B]`, on the CPU, as the classifier of a domain (or of all) reads them.

        Raises:
            Skipped: it cannot be trained.
        """
        return self._classifier(domain).read(shrink_images(image))

    def predict_mask(self, image: Tensor) -> Tensor:
        """Images `[B,C,H,W]` in [-1, 1] -> mask classes `[B,h,w]` uint8, on the CPU, with sides of 32 pixels at most."""
        return self._segmenter().read(shrink_images(image))

    def predict_boxes(self, image: Tensor) -> Tensor:
        """Images `[B,C,H,W]` in [-1, 1] -> boxes `[B,M,6]`, on the CPU, see `mtgen.schema.Prediction`."""
        return self._detector().read(shrink_images(image))

    def _all(self, domain: int | None) -> tuple[Tensor, ...]:
        parts = [kept.rows()[1:] for number, kept in sorted(self.domains.items()) if domain in (None, number)]
        if not parts:
            raise Skipped("no real training image to train an independent reader on")
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _train_classifier(self, domain: int | None) -> Classifier:
        classes = required_classes(self.setting.card)
        image, label, *_ = self._all(domain)
        image, label = image[label >= 0], label[label >= 0]
        if len(image) < MIN_IMAGES_PER_CLASS * classes:
            raise Skipped(
                f"it takes {MIN_IMAGES_PER_CLASS * classes} real training images with a class, {MIN_IMAGES_PER_CLASS} a class; there are {len(image)}"
            )
        return Classifier(
            image, label, classes, self._making("train the independent classifier", reader="classifier", domain=domain)
        )

    def _train_segmenter(self) -> Segmenter:
        classes = required_mask_classes(self.setting.card)
        image, _, mask, *_ = self._all(None)
        known = (mask != IGNORE_INDEX).flatten(1).any(1)
        if int(known.sum()) < MIN_IMAGES_PER_CLASS * classes:
            raise Skipped(
                f"it takes {MIN_IMAGES_PER_CLASS * classes} real training images with a mask, {MIN_IMAGES_PER_CLASS} a class; there are {int(known.sum())}"
            )
        making = replace(
            self._making("train the independent segmenter", reader="segmenter"), times=TRAINING_LENGTH_FACTOR
        )
        return Segmenter(image[known], mask[known], classes, making)

    def _train_detector(self) -> Detector:
        classes = required_classes(self.setting.card)
        image, _, _, boxes, known = self._all(None)
        if int(known.sum()) < MIN_IMAGES_PER_CLASS * classes:
            raise Skipped(
                f"it takes {MIN_IMAGES_PER_CLASS * classes} real training images with boxes, {MIN_IMAGES_PER_CLASS} a class; there are {int(known.sum())}"
            )
        making = replace(
            self._making("train the independent detector", reader="detector"), times=TRAINING_LENGTH_FACTOR
        )
        return Detector(image[known], boxes[known], classes, making)

    def _making(self, what: str, **place: Any) -> TrainingSpec:
        """How a reader comes about: `what` its progress is called, and where it is kept beside what it depends on."""
        setting = self.setting
        kept = setting.real.at(**place, seed=setting.seed, most=MAX_IMAGES_PER_DOMAIN)
        return TrainingSpec(setting.seed, setting.device, lambda done, total: setting.progress(what, done, total), kept)
