"""A trained model as those who use it see it, and the one way to draw samples from it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from mtgen.schema import Batch, Canvas, DatasetCard, Prediction, Prompt
from mtgen.utils import counter_rng


class SamplingModel(Protocol):
    """An inference view of a run: averaged weights, in evaluation mode."""

    card: DatasetCard
    size: tuple[int, int]
    channels: int
    device: torch.device
    latent_size: int
    conditions: list[str]
    translates: str | None

    def sample(self, prompt: Prompt, latent: Tensor) -> Canvas:
        """A prompt of B rows, latents `[B,Z]` -> image `[B,C,H,W]` about [-1, 1], with mask and boxes where the run draws them."""
        ...

    def predict(self, image: Tensor) -> Prediction:
        """Images `[B,C,H,W]` in [-1, 1] -> what is read in them."""
        ...

    def prompt_from_batch(self, batch: Batch, name: str) -> Prompt:
        """Each sample of a batch asked for by its own modality `name` alone, where it has that."""
        ...

    def embed(self, prompt: Prompt) -> Tensor:
        """A prompt of B rows -> `[B,d]` in the shared representation space."""
        ...

    def reconstruct(self, image: Tensor, prompt: Prompt) -> Canvas | None:
        """Images and what is known of them through the posterior's mean and the generator; `None` without a posterior."""
        ...

    def translate(self, image: Tensor, prompt: Prompt, latent: Tensor) -> Canvas | None:
        """Images and the domain asked for, latents `[B,Z]` -> the images in that domain; `None` where the run does not translate."""
        ...


def balanced_labels(n: int, classes: list[int]) -> Tensor:
    """`[n]` int64: `classes` in turn, so that their counts differ by one at most; -1 ("no class") where there are none."""
    return torch.tensor(classes or [-1])[torch.arange(n) % max(len(classes), 1)]


def class_prompts(model: SamplingModel, labels: Tensor) -> Prompt:
    """`[B]` classes (-1: none) -> the prompt for one of each, as the model can be asked for it; for nothing, where it cannot."""
    if "class" in model.conditions:
        return Prompt.of_classes(labels)
    if "labels" not in model.conditions:
        return Prompt(len(labels), {}, {})
    value = torch.nn.functional.one_hot(labels.clamp_min(0), len(model.card.classes)).float()
    return Prompt(len(labels), {"labels": value}, {"labels": labels >= 0})


def generate(
    model: SamplingModel,
    prompt: Prompt,
    seed: int,
    purpose: str,
    batch_size: int = 64,
    *,
    n: int | None = None,
    truncation: float = 1.0,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
) -> Iterator[tuple[Canvas, Tensor]]:
    """Draw samples, the prompt's rows in turn; yields canvases of up to `batch_size` samples, and which samples they are.

    Sample i's latent is a function of (seed, purpose, i) alone. Images are clamped to [-1, 1], the range that a picture has.

    Args:
        n: how many; default: one for each row of the prompt.
        truncation: factor of the latents, 0 (all at their mean) to 1.
        rank, world, start: draw this worker's batches alone, from number `start` on, as `mtgen.data.loader.iterate_split` deals them out.
    """
    total = len(prompt) if n is None else n
    for begin in range((start + rank) * batch_size, total, batch_size * world):
        position = torch.arange(begin, min(begin + batch_size, total))
        latent = counter_rng.normal(seed, purpose, position, (model.latent_size,), model.device)
        with torch.no_grad():
            canvas = model.sample(prompt.rows(position % len(prompt)).to(model.device), latent * truncation)
        yield replace(canvas, image=canvas.image.float().clamp(-1, 1)), position
