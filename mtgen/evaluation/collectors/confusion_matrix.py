"""A confusion matrix over all pixels of a stream, and its mean intersection over union."""

import torch
from torch import Tensor

from mtgen.evaluation.base import Skipped
from mtgen.evaluation.collectors.base import State


class ConfusionMatrix:
    """Pixel counts by (true, predicted) class, `[M,M]`."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)

    def update(self, true: Tensor, predicted: Tensor) -> None:
        """Count two `[...]` integer tensors of one shape; pixels whose true class is out of range (255) are ignored."""
        true, predicted = true.flatten(), predicted.flatten()
        known = (true >= 0) & (true < self.classes)
        cells = true[known] * self.classes + predicted[known]
        self.counts += torch.bincount(cells, minlength=self.classes**2).reshape(self.classes, self.classes).cpu()

    def mean_iou(self) -> float:
        """Intersection over union, averaged over the classes that occur as true or predicted (Everingham et al. 2010).

        Raises:
            Skipped: no pixel was counted.
        """
        hits = self.counts.diagonal()
        union = self.counts.sum(0) + self.counts.sum(1) - hits
        occurs = union > 0
        if not occurs.any():
            raise Skipped("no pixel has a known mask class")
        return (hits[occurs] / union[occurs]).mean().item()

    def state_dict(self) -> State:
        """The counts."""
        return {"counts": self.counts}

    def load_state_dict(self, state: State) -> None:
        """Restore the counts."""
        self.counts = state["counts"]
