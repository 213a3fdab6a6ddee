"""Every modality alone, and any subset of them together, in one space."""

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from mtgen.conditions.base import ConditionSizes
from mtgen.conditions.caption import Caption
from mtgen.config import CONDITIONS
from mtgen.models.model import build
from mtgen.schema import Prompt

CONFIG = toy.everything()
MODULE = build(CONFIG, toy.CARD).side.requires_grad_(False)
ENCODER = MODULE.conditions
SIZES = ConditionSizes(classes=3, mask_classes=2, domains=2, vocabulary=9, sound=(8, 8), size=8)


def everything(rows: int = 6) -> Prompt:
    """A prompt with every modality in every row."""
    batch = toy.batch(3, rows)
    labels = torch.tensor([[True, False, False], [True, True, False], [False, True, True]]).repeat(2, 1)
    batch = replace(batch, labels=labels, caption=torch.arange(1, 7).repeat(rows, 1) % 4 + 1)
    values: dict[str, Any] = {
        name: ENCODER.modality(name).value(batch) for name in ENCODER.modalities if name != "image"
    }
    values["image"] = MODULE.embed(batch.image)
    return Prompt(rows, values, {name: torch.ones(rows, dtype=torch.bool) for name in values})


WHOLE = everything()
ALONE = {name: ENCODER(WHOLE.only(name)).pooled for name in ENCODER.names}


def test_all_modalities_are_tested() -> None:
    assert list(ENCODER.modalities) == list(CONFIG.conditions)
    assert sorted(ENCODER.modalities) == CONDITIONS.names()


@pytest.mark.parametrize("number", range(len(ENCODER.modalities) + 1))
def test_any_subset_is_finite_and_the_pooled_vector_is_the_mean_of_those_given(number: int) -> None:
    for chosen in combinations(ENCODER.modalities, number):
        given = {name: torch.full((6,), name in chosen) for name in WHOLE.values}
        condition = ENCODER(Prompt(6, WHOLE.values, given))
        vectors = [ALONE[name] for name in chosen if name in ALONE]
        expected = torch.stack(vectors).mean(0) if vectors else ENCODER.nothing.expand(6, -1)
        assert torch.allclose(condition.pooled, expected, atol=1e-5), chosen
        assert condition.tokens is not None and bool(torch.isfinite(condition.tokens).all())
        assert condition.layout is not None and bool(torch.isfinite(condition.layout).all())


@settings(max_examples=30)
@given(st.integers(0, 2**48 - 1))
def test_each_row_is_encoded_independently_of_the_others(bits: int) -> None:
    names = list(WHOLE.values)
    given = {name: torch.tensor([bool(bits >> (6 * k + row) & 1) for row in range(6)]) for k, name in enumerate(names)}
    whole = ENCODER(Prompt(6, WHOLE.values, given))
    for row in (0, 5):
        alone = ENCODER(Prompt(6, WHOLE.values, given).rows(torch.tensor([row])))
        for name in ("pooled", "tokens", "layout"):
            assert torch.allclose(getattr(whole, name)[row], getattr(alone, name)[0], atol=1e-5)


@pytest.mark.parametrize("name", ENCODER.names)
def test_a_vector_of_any_modality_has_the_length_of_a_standard_normal(name: str) -> None:
    assert torch.allclose(ALONE[name].norm(dim=1), torch.full((6,), math.sqrt(8)), atol=1e-4)


def test_a_modality_missing_from_a_prompt_counts_as_not_given() -> None:
    without = Prompt(6, {"class": WHOLE.values["class"]}, {"class": WHOLE.given["class"]})
    off = {name: has & (name == "class") for name, has in WHOLE.given.items()}
    assert torch.equal(ENCODER(without).pooled, ENCODER(Prompt(6, WHOLE.values, off)).pooled)


def test_tokens_are_the_pooled_vector_and_those_of_given_captions_and_sounds() -> None:
    given = {name: has.clone() for name, has in WHOLE.given.items()}
    given["caption"][[0, 2]] = given["sound"][[0, 1]] = False
    condition = ENCODER(Prompt(6, WHOLE.values, given))
    assert condition.tokens is not None and condition.present is not None
    assert torch.equal(condition.tokens[:, 0], condition.pooled)
    assert condition.tokens.shape == (6, 1 + 6 + 2, 8)  # 6 of a caption, 2 of 8 frames of sound
    assert condition.present.sum(1).tolist() == [1, 7, 3, 9, 9, 9]


def test_an_empty_caption_is_finite_and_has_no_token() -> None:
    empty = torch.zeros(2, 6, dtype=torch.int64)
    condition = ENCODER(Prompt(2, {"caption": empty}, {"caption": torch.tensor([True, False])}))
    assert condition.present is not None and condition.present.sum(1).tolist() == [1, 1]
    assert bool(torch.isfinite(condition.pooled).all())


def test_values_that_are_not_given_have_no_influence() -> None:
    given = {name: has & (name == "class") for name, has in WHOLE.given.items()}
    other = {name: value if name == "class" else value.flip(0) for name, value in WHOLE.values.items()}
    one, another = ENCODER(Prompt(6, WHOLE.values, given)), ENCODER(Prompt(6, other, given))
    assert torch.equal(one.pooled, another.pooled)
    assert one.layout is not None and not one.layout.any()


@settings(max_examples=30)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=5))
def test_padding_does_not_change_a_captions_encoding(words: list[int]) -> None:
    torch.manual_seed(0)
    short, long = (Caption(Caption.Settings(tokens=length), SIZES) for length in (5, 9))
    state = short.state_dict()
    state["sequence_encoder.position"] = torch.cat([state["sequence_encoder.position"], torch.randn(4, 8)])
    long.load_state_dict(state)
    one, other = (m.encode(torch.tensor([words + [0] * (m.settings.tokens - len(words))])) for m in (short, long))
    assert torch.allclose(one.pooled, other.pooled, atol=1e-5)
    assert one.tokens is not None and other.tokens is not None and other.present is not None
    assert torch.allclose(one.tokens[:, : len(words)], other.tokens[:, : len(words)], atol=1e-5)
    assert int(other.present.sum()) == len(words)


def test_captions_with_different_words_or_another_order_have_different_vectors() -> None:
    caption = ENCODER.modality("caption")
    words = torch.tensor([[1, 2, 3, 0, 0, 0], [1, 3, 2, 0, 0, 0], [1, 2, 0, 0, 0, 0], [1, 2, 3, 0, 0, 0]])
    pooled = caption.encode(words).pooled
    assert torch.allclose(pooled[0], pooled[3])
    assert all(not torch.allclose(pooled[a], pooled[b], atol=1e-4) for a, b in ((0, 1), (0, 2), (1, 2)))
    identity = caption.identity(words)
    assert identity is not None and identity[0] == identity[3] and len(identity.unique()) == 3


def test_labels_are_the_mean_of_their_classes_and_0_without_any() -> None:
    labels = ENCODER.modality("labels")
    table = labels.get_parameter("table.weight")
    pooled = labels.encode(torch.tensor([[1.0, 0, 1], [0, 1, 0], [0, 0, 0]])).pooled
    assert torch.allclose(pooled, torch.stack([(table[0] + table[2]) / 2, table[1], torch.zeros(8)]), atol=1e-6)


def test_a_reference_image_is_asked_for_beside_itself_in_training() -> None:
    modality = ENCODER.modality("image")
    d = modality.sizes.size
    value = F.normalize(torch.randn(4000, d, generator=torch.Generator().manual_seed(0)), dim=1)
    random = torch.rand(4000, modality.random_numbers, generator=torch.Generator().manual_seed(1))
    beside = modality.augment(value, random)
    assert torch.allclose(beside.norm(dim=1), torch.ones(4000))
    cosine = (beside * value).sum(1)
    assert bool((cosine < 0.999).all())
    assert cosine.mean().item() == pytest.approx(1 / (1 + 0.5**2) ** 0.5, abs=0.02)
