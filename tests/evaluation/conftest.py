"""Small models and batches for the metrics' tests."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from torch import Tensor

from mtgen.schema import IGNORE_INDEX, Batch, Canvas, DatasetCard, Prediction, Prompt


def _nothing(image: Tensor) -> Prediction:
    return Prediction()


def _labels(prompt: Prompt) -> Tensor:
    """`[B]` the classes that are asked for; -1: none."""
    return prompt.values["class"].where(prompt.given["class"], -1)


@dataclass
class Assembled:
    """A model made of functions of class numbers (-1: none), with the interface of `mtgen.models.model.Model`."""

    card: DatasetCard
    draw: Callable[[Tensor, Tensor], Canvas]
    read: Callable[[Tensor], Prediction] = _nothing
    rebuild: Callable[[Tensor, Tensor], Canvas | None] = lambda image, labels: None
    size: tuple[int, int] = (8, 8)
    channels: int = 1
    latent_size: int = 4
    device: torch.device = torch.device("cpu")
    conditions: list[str] = field(default_factory=lambda: ["class"])
    translates: str | None = None
    backbone: None = None
    turn: Callable[[Tensor, Prompt], Canvas | None] = lambda image, prompt: None

    def sample(self, prompt: Prompt, latent: Tensor) -> Canvas:
        return self.draw(_labels(prompt), latent)

    def prompt_from_batch(self, batch: Batch, name: str) -> Prompt:
        """By class, whatever the modality: this model knows nothing else."""
        return Prompt(
            len(batch),
            {name: batch.label, "class": batch.label},
            {name: batch.present["class"], "class": batch.present["class"]},
        )

    def embed(self, prompt: Prompt) -> Tensor:
        return torch.nn.functional.one_hot(prompt.values["class"], len(self.card.classes)).float()

    def predict(self, image: Tensor) -> Prediction:
        return self.read(image)

    def reconstruct(self, image: Tensor, prompt: Prompt) -> Canvas | None:
        return self.rebuild(image, _labels(prompt))

    def translate(self, image: Tensor, prompt: Prompt, latent: Tensor) -> Canvas | None:
        return self.turn(image, prompt)


@pytest.fixture(scope="session")
def assemble() -> type[Assembled]:
    return Assembled


@pytest.fixture(scope="session")
def make_card() -> Callable[..., DatasetCard]:
    def make(classes: int = 3, mask_classes: int = 3) -> DatasetCard:
        names = {
            "classes": [f"class{i}" for i in range(classes)],
            "mask_classes": [f"mask{i}" for i in range(mask_classes)],
        }
        return DatasetCard(name="test", splits={}, **names)

    return make


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    """`make_batch(image, label, mask)`: a batch as from the loader; a label of -1 or a mask of `None` is missing."""

    def make(
        image: Tensor, label: Tensor | None = None, mask: Tensor | None = None, has_mask: Tensor | None = None
    ) -> Batch:
        n = len(image)
        label = torch.full((n,), -1) if label is None else label
        has_mask = torch.full((n,), mask is not None) if has_mask is None else has_mask
        mask = (
            torch.full((n, *image.shape[2:]), IGNORE_INDEX)
            if mask is None
            else mask.where(has_mask[:, None, None], torch.tensor(IGNORE_INDEX))
        )
        present = {"class": label >= 0, "mask": has_mask}
        return Batch(torch.arange(n), image, label.clamp(min=0), mask, present, torch.arange(n), present)

    return make


@pytest.fixture(scope="session")
def digits(shared_data: Callable[[str], Path]) -> Callable[[str], tuple[Tensor, Tensor, Tensor]]:
    """`digits("train")`: images `[N,1,28,28]` in [-1, 1], classes `[N]` and masks `[N,28,28]` of real digits."""
    folder = shared_data("digits")

    def read(split: str) -> tuple[Tensor, Tensor, Tensor]:
        shards = [str(path) for path in sorted(folder.glob(f"{split}-*.tar"))]
        samples = list(
            webdataset.WebDataset(shards, shardshuffle=False).decode("l8").to_tuple("png", "cls", "mask.png")
        )
        image, label, mask = (torch.from_numpy(np.stack(part)) for part in zip(*samples, strict=True))
        return image[:, None].float() / 127.5 - 1, label, mask.long()

    return read
