"""Drawing samples: which latents, in which batches."""

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mtgen.sampling import Model, balanced_labels, generate
from mtgen.schema import Canvas, DatasetCard, Prediction, Prompt


class Linear:
    """A generator of one layer."""

    card = DatasetCard(name="test", classes=["a", "b"], splits={})
    size, channels, latent_size, conditions = (4, 4), 1, 6, ["class"]
    device = torch.device("cpu")

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(self.latent_size + 1, 16)

    def sample(self, prompt: Prompt, latent: Tensor) -> Canvas:
        labels = prompt.values["class"]
        return Canvas(self.gain * self.layer(torch.cat([latent, labels[:, None].float()], 1)).reshape(-1, 1, 4, 4))

    def predict(self, image: Tensor) -> Prediction:
        return Prediction()

    def reconstruct(self, image: Tensor, prompt: Prompt) -> Canvas | None:
        return None

    def translate(self, image: Tensor, prompt: Prompt, latent: Tensor) -> Canvas | None:
        return None


def drawn(model: Model, n: int, seed: int, purpose: str = "test", batch_size: int = 64) -> Tensor:
    return torch.cat(
        [canvas.image for canvas, _ in generate(model, Prompt.of_classes(torch.zeros(n, dtype=torch.int64)), seed, purpose, batch_size)]
    )


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


def test_samples_come_with_their_positions() -> None:
    prompt = Prompt.of_classes(torch.tensor([1, 0, 1, 1, 0]))
    assert torch.cat([position for _, position in generate(Linear(), prompt, 0, "test", 2)]).tolist() == [0, 1, 2, 3, 4]


def test_the_rows_of_a_prompt_take_turns() -> None:
    two, whole = Prompt.of_classes(torch.tensor([0, 1])), Prompt.of_classes(torch.tensor([0, 1, 0, 1, 0]))
    turns, each = (torch.cat([c.image for c, _ in generate(Linear(), p, 0, "test", 2, n=5)]) for p in (two, whole))
    assert torch.equal(turns, each)


@given(st.integers(0, 50), st.lists(st.integers(0, 9), min_size=1, max_size=10, unique=True))
def test_balanced_labels_differ_in_count_by_one_at_most(n: int, classes: list[int]) -> None:
    labels = balanced_labels(n, classes).tolist()
    counts = Counter(labels)
    assert len(labels) == n and set(labels) <= set(classes)
    assert max(counts[c] for c in classes) - min(counts[c] for c in classes) <= 1


def test_without_classes_no_class_is_asked_for() -> None:
    assert balanced_labels(3, []).tolist() == [-1, -1, -1]
