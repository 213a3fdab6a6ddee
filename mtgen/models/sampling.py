"""Sampling from a trained model in batches."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from mtgen.models.model import Model
from mtgen.schema import Canvas, Prompt
from mtgen.utils import counter_rng


def balanced_labels(n: int, classes: list[int]) -> Tensor:
    """`[n]` int64: `classes` repeated in order, so that counts differ by at most one; -1 (none) without classes."""
    return torch.tensor(classes or [-1])[torch.arange(n) % max(len(classes), 1)]


def class_prompts(model: Model, labels: Tensor) -> Prompt:
    """Classes `[B]` (-1: none) -> a prompt by class, by labels, or an empty one, as the model's conditions allow."""
    if "class" in model.conditions:
        return Prompt.of_classes(labels)
    if "labels" not in model.conditions:
        return Prompt(len(labels), {}, {})
    value = torch.nn.functional.one_hot(labels.clamp_min(0), len(model.card.classes)).float()
    return Prompt(len(labels), {"labels": value}, {"labels": labels >= 0})


def generate(
    model: Model,
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
    """Generate samples in batches; yields canvases of up to `batch_size` samples, and the numbers of these samples.

    Sample i has row `i % len(prompt)` of the prompt. Its latent is a function of (seed, purpose, i) alone. Images are
    clamped to [-1, 1].

    Args:
        n: number of samples; default: one per row of the prompt.
        truncation: factor of the latents, 0 (all at their mean) to 1.
        rank, world, start: generate this worker's batches only, from batch `start` on, distributed as in
            `mtgen.data.loader.iterate_split`.
    """
    total = len(prompt) if n is None else n
    for begin in range((start + rank) * batch_size, total, batch_size * world):
        position = torch.arange(begin, min(begin + batch_size, total))
        latent = counter_rng.normal(seed, purpose, position, (model.latent_size,), model.device)
        with torch.no_grad():
            canvas = model.sample(prompt.rows(position % len(prompt)).to(model.device), latent * truncation)
        yield replace(canvas, image=canvas.image.float().clamp(-1, 1)), position
