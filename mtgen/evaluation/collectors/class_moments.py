"""First and second moments of images within their classes, in one pass."""

import torch
from torch import Tensor

from mtgen.evaluation.collectors.base import State


class ClassMoments:
    """Spread of the images within each of K classes; holds one mean image per class."""

    def __init__(self, classes: int) -> None:
        self.count = torch.zeros(classes, dtype=torch.int64)
        self.square = torch.zeros(classes, dtype=torch.float64)
        self.total = torch.zeros(classes, 0, dtype=torch.float64)

    def update(self, image: Tensor, label: Tensor) -> None:
        """Take in images `[B,C,H,W]` of the classes `[B]`."""
        # float64: the variance is a difference of two sums, and a collapsed generator's is tiny
        pixels, label = image.detach().flatten(1).to("cpu", torch.float64), label.cpu()
        if not self.total.shape[1]:
            self.total = pixels.new_zeros(len(self.count), pixels.shape[1])
        self.count.index_add_(0, label, torch.ones_like(label))
        self.square.index_add_(0, label, pixels.square().sum(1))
        self.total.index_add_(0, label, pixels)

    def deviation(self) -> Tensor:
        """`[K]` float64: root of the mean over pixels of the population variance; NaN for a class without images."""
        variance = self.square / self.count - (self.total / self.count[:, None]).square().sum(1)
        return (variance.clamp(min=0) / self.total.shape[1]).sqrt()

    def state_dict(self) -> State:
        """The sums of each class."""
        return {"count": self.count, "square": self.square, "total": self.total}

    def load_state_dict(self, state: State) -> None:
        """Restore the sums of each class."""
        self.count = state["count"]
        self.square = state["square"]
        self.total = state["total"]
