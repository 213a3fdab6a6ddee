"""A trained model as those who use it see it, and the one way to draw samples from it."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from mtgen import counter
from mtgen.schema import Canvas, DatasetCard, Prediction


class Model(Protocol):
    """An inference view of a run: averaged weights, in evaluation mode."""

    card: DatasetCard
    resolution: int
    channels: int
    device: torch.device
    latent_size: int

    def sample(self, labels: Tensor, latent: Tensor) -> Canvas:
        """Classes `[B]` (-1: none asked for), latents `[B,Z]` -> image `[B,C,H,W]` about [-1, 1], mask probabilities `[B,M,H,W]`."""
        ...

    def predict(self, image: Tensor) -> Prediction:
        """Images `[B,C,H,W]` in [-1, 1] -> what is read in them."""
        ...

    def reconstruct(self, image: Tensor, labels: Tensor) -> Canvas | None:
        """Images and their classes (-1: unknown) through the posterior's mean and the generator; `None` without a posterior."""
        ...


def balanced_labels(n: int, classes: list[int]) -> Tensor:
    """`[n]` int64: `classes` in turn, so that their counts differ by one at most; -1 ("no class") where there are none."""
    return torch.tensor(classes or [-1])[torch.arange(n) % max(len(classes), 1)]


def generate(model: Model, labels: Tensor, seed: int, purpose: str, batch_size: int = 64) -> Iterator[tuple[Canvas, Tensor]]:
    """Draw one sample for each of `labels` `[N]`; yields canvases of up to `batch_size` samples, with their labels.

    Sample i's latent is a function of (seed, purpose, i) alone. Images are clamped to [-1, 1], the range that a picture has.
    """
    for start in range(0, len(labels), batch_size):
        asked = labels[start : start + batch_size].to(model.device)
        position = torch.arange(start, start + len(asked))
        latent = counter.normal(seed, purpose, position, (model.latent_size,), model.device)
        with torch.no_grad():
            canvas = model.sample(asked, latent)
        yield Canvas(canvas.image.float().clamp(-1, 1), canvas.mask, canvas.shown), asked
