"""Sampling: latents, batches, and prompts by class."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mtgen.models.sampling import balanced_labels, class_prompts, generate
from mtgen.schema import Canvas, DatasetCard, Prompt


class Linear:
    """A generator with one layer, with what `generate` needs of a model."""

    latent_size = 6
    device = torch.device("cpu")

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(self.latent_size + 1, 4 * 4)

    def sample(self, prompt: Prompt, latent: Tensor) -> Canvas:
        return Canvas(
            self.gain * self.layer(torch.cat([latent, prompt.values["class"][:, None].float()], 1)).reshape(-1, 1, 4, 4)
        )


def sampled(model: Any, n: int, seed: int, purpose: str = "test", batch_size: int = 64) -> Tensor:
    prompt = Prompt.of_classes(torch.zeros(n, dtype=torch.int64))
    return torch.cat([canvas.image for canvas, _ in generate(model, prompt, seed, purpose, batch_size)])


@given(st.integers(1, 20), st.integers(1, 20))
def test_samples_do_not_depend_on_the_batch_size(n: int, batch_size: int) -> None:
    torch.testing.assert_close(sampled(Linear(), n, 0, batch_size=batch_size), sampled(Linear(), n, 0))


def test_another_seed_gives_other_samples() -> None:
    assert not torch.equal(sampled(Linear(), 4, 0), sampled(Linear(), 4, 1))


def test_another_purpose_gives_other_samples() -> None:
    assert not torch.equal(sampled(Linear(), 4, 0), sampled(Linear(), 4, 0, "other"))


def test_each_sample_has_its_own_latent() -> None:
    assert len(sampled(Linear(), 50, 0).flatten(1).unique(dim=0)) == 50


def test_images_are_clamped() -> None:
    images = sampled(Linear(gain=100), 8, 0)
    assert images.min() == -1 and images.max() == 1


def test_samples_carry_no_graph() -> None:
    assert not sampled(Linear(), 2, 0).requires_grad


def test_the_numbers_of_the_samples_are_returned() -> None:
    prompt = Prompt.of_classes(torch.tensor([1, 0, 1, 1, 0]))
    assert torch.cat([rows for _, rows in generate(Linear(), prompt, 0, "test", 2)]).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("world", "start"), [(2, 0), (3, 0), (7, 0), (1, 2), (3, 4)])
def test_batches_are_distributed_round_robin(world: int, start: int) -> None:
    prompt = Prompt.of_classes(torch.tensor([1, 0, 1, 1, 0, 1, 0, 0, 1, 1, 0]))
    alone = list(generate(Linear(), prompt, 0, "test", 2))[start:]
    workers = [
        list(generate(Linear(), prompt, 0, "test", 2, rank=rank, world=world, start=start)) for rank in range(world)
    ]
    assert sum(len(worker) for worker in workers) == len(alone)
    for number, (canvas, rows) in enumerate(alone):
        other, same = workers[number % world][number // world]
        assert torch.equal(rows, same) and torch.equal(canvas.image, other.image)


def test_a_sample_is_conditioned_on_its_row_of_the_prompt() -> None:
    seen: list[int] = []

    class Recording(Linear):
        def sample(self, prompt: Prompt, latent: Tensor) -> Canvas:
            seen.extend(prompt.values["class"].tolist())
            return super().sample(prompt, latent)

    labels = torch.tensor([1, 0, 1, 1, 0])
    list(generate(Recording(), Prompt.of_classes(labels), 0, "test", 2))
    assert seen == labels.tolist()


@given(st.integers(0, 50), st.lists(st.integers(0, 9), min_size=1, max_size=10, unique=True))
def test_balanced_labels_differ_in_count_by_at_most_one(n: int, classes: list[int]) -> None:
    labels = balanced_labels(n, classes).tolist()
    counts = Counter(labels)
    assert len(labels) == n and set(labels) <= set(classes)
    assert max(counts[c] for c in classes) - min(counts[c] for c in classes) <= 1


def test_without_classes_there_is_no_class() -> None:
    assert balanced_labels(3, []).tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("conditions", "values"),
    [
        (["class", "labels"], {"class": [1, 0]}),
        (["labels", "image"], {"labels": [[0, 1, 0], [1, 0, 0]]}),
        (["caption"], {}),
    ],
)
def test_a_class_is_given_by_a_condition_that_the_model_has(conditions: list[str], values: dict[str, Any]) -> None:
    model: Any = SimpleNamespace(conditions=conditions, card=DatasetCard(name="x", classes=["a", "b", "c"], splits={}))
    prompt = class_prompts(model, torch.tensor([1, -1]))
    assert len(prompt) == 2 and {name: value.tolist() for name, value in prompt.values.items()} == values
    assert all(given.tolist() == [True, False] for given in prompt.given.values())
