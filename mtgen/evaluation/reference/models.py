"""The reference models of an evaluation, trained once on real training images and shared by all metrics."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from mtgen.evaluation.base import MetricContext, Skipped, required_classes, required_mask_classes
from mtgen.evaluation.collectors.base import State
from mtgen.evaluation.collectors.uniform_subsample import UniformSubsample
from mtgen.evaluation.reference.classifier import Classifier, shrink_images
from mtgen.evaluation.reference.detector import Detector
from mtgen.evaluation.reference.segmenter import Segmenter, shrink_mask
from mtgen.evaluation.reference.training import MIN_IMAGES_PER_CLASS, TrainingSpec
from mtgen.schema import IGNORE_INDEX, Batch

MAX_IMAGES_PER_DOMAIN = 8_000
"""Training images kept per domain, a uniform subsample."""
LONG_TRAINING_FACTOR = 3
"""How much longer segmenter and detector are trained here than by a metric: they are cached and have to be accurate."""


class ReferenceModels:
    """Classifiers (one per domain of a mixture, one for all), a segmenter, a detector; trained on first use."""

    def __init__(self, context: MetricContext) -> None:
        self.context = context
        self._domains: dict[int, UniformSubsample] = {}
        self._classifier = cache(self._train_classifier)
        self._segmenter = cache(self._train_segmenter)
        self._detector = cache(self._train_detector)

    def update_train(self, batch: Batch) -> None:
        """Take in real training samples."""
        image = shrink_images(batch.image)
        label = batch.label.where(batch.present["class"], -1).cpu()
        has_mask = batch.present["mask"][:, None, None]
        mask = shrink_mask(batch.mask.where(has_mask, torch.full_like(batch.mask, IGNORE_INDEX)), image)
        boxes = torch.zeros(len(batch), 0, 5) if batch.boxes is None else batch.boxes.cpu()
        has_boxes = torch.zeros(len(batch), dtype=torch.bool) if batch.boxes is None else batch.present["boxes"].cpu()
        domain = torch.zeros(len(batch), dtype=torch.int64) if batch.domain is None else batch.domain.cpu()
        for number in domain.unique().tolist():
            own = domain == number
            rows = (part[own] for part in (image, label, mask, boxes, has_boxes))
            subsample = self._domains.setdefault(number, UniformSubsample(MAX_IMAGES_PER_DOMAIN))
            subsample.update(*rows, position=batch.position[own])

    def state_dict(self) -> State:
        """The training images of each domain."""
        return {str(number): subsample.state_dict() for number, subsample in self._domains.items()}

    def load_state_dict(self, state: State) -> None:
        """Restore the training images of each domain."""
        for number, saved in state.items():
            self._domains[int(number)] = UniformSubsample(MAX_IMAGES_PER_DOMAIN)
            self._domains[int(number)].load_state_dict(saved)

    def classifier(self, domain: int | None = None) -> Classifier:
        """The classifier of a domain, or of all domains.

        Raises:
            Skipped: there are too few training images.
        """
        return self._classifier(domain)

    def predict_class(self, image: Tensor, domain: int | None = None) -> Tensor:
        """Images `[B,C,H,W]` in [-1, 1] -> classes `[B]` on the CPU, by the classifier of a domain or of all domains.

        Raises:
            Skipped: there are too few training images.
        """
        return self._classifier(domain).predict(shrink_images(image))

    def predict_mask(self, image: Tensor) -> Tensor:
        """Images `[B,C,H,W]` in [-1, 1] -> mask classes `[B,h,w]` uint8 on the CPU, with sides of at most 32 pixels."""
        return self._segmenter().predict(shrink_images(image))

    def predict_boxes(self, image: Tensor) -> Tensor:
        """Images `[B,C,H,W]` in [-1, 1] -> boxes `[B,M,6]` on the CPU, see `mtgen.schema.Prediction`."""
        return self._detector().predict(shrink_images(image))

    def _training_rows(self, domain: int | None) -> tuple[Tensor, ...]:
        """Images, labels, masks, boxes, and which samples have boxes, of a domain or of all domains."""
        found = [kept.rows()[1:] for number, kept in sorted(self._domains.items()) if domain in (None, number)]
        if not found:
            raise Skipped("there is no real training image to train a reference model on")
        return tuple(torch.cat(column) for column in zip(*found, strict=True))

    def _train_classifier(self, domain: int | None) -> Classifier:
        classes = required_classes(self.context.card)
        image, label, *_ = self._training_rows(domain)
        image, label = image[label >= 0], label[label >= 0]
        _require_images(len(image), classes, "a class")
        return Classifier(image, label, classes, self._spec("classifier", domain=domain))

    def _train_segmenter(self) -> Segmenter:
        classes = required_mask_classes(self.context.card)
        image, _, mask, *_ = self._training_rows(None)
        known = (mask != IGNORE_INDEX).flatten(1).any(1)
        _require_images(int(known.sum()), classes, "a mask")
        return Segmenter(image[known], mask[known], classes, self._spec("segmenter", LONG_TRAINING_FACTOR))

    def _train_detector(self) -> Detector:
        classes = required_classes(self.context.card)
        image, _, _, boxes, known = self._training_rows(None)
        _require_images(int(known.sum()), classes, "boxes")
        return Detector(image[known], boxes[known], classes, self._spec("detector", LONG_TRAINING_FACTOR))

    def _spec(self, model: str, length_factor: int = 1, **key: Any) -> TrainingSpec:
        """How a reference model is trained, and where it is cached."""
        context = self.context
        cache_scope = context.data_cache.extend(
            reference_model=model, seed=context.seed, max_images=MAX_IMAGES_PER_DOMAIN, **key
        )
        stage = f"train the reference {model}"
        return TrainingSpec(
            context.seed,
            context.device,
            lambda done, total: context.progress(stage, done, total),
            cache_scope,
            length_factor,
        )


def _require_images(count: int, classes: int, label: str) -> None:
    """`Skipped` where too few training images have the label."""
    needed = MIN_IMAGES_PER_CLASS * classes
    if count < needed:
        raise Skipped(
            f"at least {needed} real training images with {label} are needed, {MIN_IMAGES_PER_CLASS} per class; "
            f"there are {count}"
        )
