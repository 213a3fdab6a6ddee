"""Drawing samples: which latents, in which batches."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mtgen.models.sampling import SamplingModel, balanced_labels, class_prompts, generate
from mtgen.schema import Batch, Canvas, DatasetCard, Prediction, Prompt


class Linear:
    """A generator of one layer."""

    card = DatasetCard(name="test", classes=["a", "b"], splits={})
    size, channels, latent_size = (4, 4), 1, 6
    device = torch.device("cpu")
    conditions = ["class"]
    translates = None

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(self.latent_size + 1, 4 * 4)

    def sample(self, prompt: Prompt, latent: Tensor) -> Canvas:
        return Canvas(
            self.gain * self.layer(torch.cat([latent, prompt.values["class"][:, None].float()], 1)).reshape(-1, 1, 4, 4)
        )

    def prompt_from_batch(self, batch: Batch, name: str) -> Prompt:
        return Prompt.of_classes(batch.label)

    def embed(self, prompt: Prompt) -> Tensor:
        return prompt.values["class"][:, None].float()

    def predict(self, image: Tensor) -> Prediction:
        return Prediction()

    def reconstruct(self, image: Tensor, prompt: Prompt) -> Canvas | None:
        return None

    def translate(self, image: Tensor, prompt: Prompt, latent: Tensor) -> Canvas | None:
        return None


def drawn(model: SamplingModel, n: int, seed: int, purpose: str = "test", batch_size: int = 64) -> Tensor:
    prompt = Prompt.of_classes(torch.zeros(n, dtype=torch.int64))
    return torch.cat([canvas.image for canvas, _ in generate(model, prompt, seed, purpose, batch_size)])


@given(st.integers(1, 20), st.integers(1, 20))
def test_samples_do_not_depend_on_the_batches_they_are_drawn_in(n: int, batch_size: int) -> None:
    torch.testing.assert_close(drawn(Linear(), n, 0, batch_size=batch_size), drawn(Linear(), n, 0))


def test_another_seed_draws_other_samples() -> None:
    assert not torch.equal(drawn(Linear(), 4, 0), drawn(Linear(), 4, 1))


def test_another_purpose_draws_other_samples() -> None:
    assert not torch.equal(drawn(Linear(), 4, 0), drawn(Linear(), 4, 0, "other"))


def test_each_sample_has_a_latent_of_its_own() -> None:
    assert len(drawn(Linear(), 50, 0).flatten(1).unique(dim=0)) == 50


def test_images_are_clamped_to_the_range_of_a_picture() -> None:
    images = drawn(Linear(gain=100), 8, 0)
    assert images.min() == -1 and images.max() == 1


def test_samples_carry_no_graph() -> None:
    assert not drawn(Linear(), 2, 0).requires_grad


def test_rows_of_the_prompt_come_with_their_samples() -> None:
    prompt = Prompt.of_classes(torch.tensor([1, 0, 1, 1, 0]))
    assert torch.cat([rows for _, rows in generate(Linear(), prompt, 0, "test", 2)]).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("world", "start"), [(2, 0), (3, 0), (7, 0), (1, 2), (3, 4)])
def test_workers_draw_the_batches_of_one_in_turn(world: int, start: int) -> None:
    prompt = Prompt.of_classes(torch.tensor([1, 0, 1, 1, 0, 1, 0, 0, 1, 1, 0]))
    alone = list(generate(Linear(), prompt, 0, "test", 2))[start:]
    workers = [
        list(generate(Linear(), prompt, 0, "test", 2, rank=rank, world=world, start=start)) for rank in range(world)
    ]
    assert sum(len(worker) for worker in workers) == len(alone)
    for number, (canvas, rows) in enumerate(alone):
        other, same = workers[number % world][number // world]
        assert torch.equal(rows, same) and torch.equal(canvas.image, other.image)


def test_a_sample_is_drawn_for_its_row_of_the_prompt() -> None:
    asked: list[int] = []

    class Listening(Linear):
        def sample(self, prompt: Prompt, latent: Tensor) -> Canvas:
            asked.extend(prompt.values["class"].tolist())
            return super().sample(prompt, latent)

    labels = torch.tensor([1, 0, 1, 1, 0])
    list(generate(Listening(), Prompt.of_classes(labels), 0, "test", 2))
    assert asked == labels.tolist()


@given(st.integers(0, 50), st.lists(st.integers(0, 9), min_size=1, max_size=10, unique=True))
def test_balanced_labels_differ_in_count_by_one_at_most(n: int, classes: list[int]) -> None:
    labels = balanced_labels(n, classes).tolist()
    counts = Counter(labels)
    assert len(labels) == n and set(labels) <= set(classes)
    assert max(counts[c] for c in classes) - min(counts[c] for c in classes) <= 1


def test_without_classes_no_class_is_asked_for() -> None:
    assert balanced_labels(3, []).tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("conditions", "values"),
    [
        (["class", "labels"], {"class": [1, 0]}),
        (["labels", "image"], {"labels": [[0, 1, 0], [1, 0, 0]]}),
        (["caption"], {}),
    ],
)
def test_a_class_is_asked_for_as_the_model_can_be_asked(conditions: list[str], values: dict[str, Any]) -> None:
    model: Any = SimpleNamespace(conditions=conditions, card=DatasetCard(name="x", classes=["a", "b", "c"], splits={}))
    prompt = class_prompts(model, torch.tensor([1, -1]))
    assert len(prompt) == 2 and {name: value.tolist() for name, value in prompt.values.items()} == values
    assert all(given.tolist() == [True, False] for given in prompt.given.values())
