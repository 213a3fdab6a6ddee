"""What is asked for, in any subset of modalities, as vectors, tokens and maps of the shared space."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtgen.conditions.base import ConditionSizes
from mtgen.conditions.encoder import ConditionEncoder
from mtgen.conditions.layout import boxes_layout, mask_layout
from mtgen.config import CONDITIONS
from mtgen.schema import Condition, Prompt

SIZES = ConditionSizes(classes=3, mask_classes=2, domains=2, vocabulary=11, sound=(5, 12), size=32)
RAW: dict[str, Tensor] = {
    "class": torch.tensor([0, 1, 2, 1]),
    "labels": torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 1], [1, 1, 0]]),
    "domain": torch.tensor([0, 1, 1, 0]),
    "caption": torch.tensor([[1, 2, 3, 0], [4, 0, 0, 0], [5, 6, 7, 8], [4, 0, 0, 0]]),
    "sound": torch.randn(4, 5, 12, generator=torch.Generator().manual_seed(1)),
    "image": torch.randn(4, 32, generator=torch.Generator().manual_seed(2)),
}


def encoder(*names: str, sizes: ConditionSizes = SIZES) -> ConditionEncoder:
    torch.manual_seed(0)
    settings = {name: CONDITIONS[name].Settings(**({"tokens": 4} if name == "caption" else {})) for name in names}
    return ConditionEncoder({name: CONDITIONS[name](settings[name], sizes) for name in names}, 32)


def prompt(**given: Any) -> Prompt:
    return Prompt(4, {n: RAW[n.rstrip("_")] for n in given}, {n: torch.as_tensor(v).expand(4) for n, v in given.items()})


def of(given: dict[str, Any]) -> Prompt:
    return prompt(**given)


def test_equal_classes_give_equal_vectors_and_others_different_ones() -> None:
    pooled = encoder("class")(of({"class": True})).pooled
    assert pooled.shape == (4, 32)
    assert torch.equal(pooled[1], pooled[3])
    assert len(torch.unique(pooled, dim=0)) == 3


def test_nothing_given_is_one_vector_of_its_own_whatever_the_raw_values_are() -> None:
    made = encoder("class")
    pooled = made(of({"class": torch.tensor([False, False, True, True])})).pooled
    assert torch.equal(pooled[0], pooled[1])
    assert torch.equal(pooled[0], made(Prompt(1, {}, {})).pooled[0])
    assert not any(torch.equal(pooled[0], row) for row in pooled[2:])


def test_only_the_vectors_that_are_asked_for_are_trained() -> None:
    made = encoder("class")
    made(of({"class": torch.tensor([True, True, False, True])})).pooled[:, :3].sum().backward()
    gradients = {name: p.grad for name, p in made.named_parameters()}
    table = gradients["modalities.class.table.weight"]
    assert table is not None
    assert table.abs().sum(1).gt(0).tolist() == [True, True, False]


@pytest.mark.parametrize("subset", [c for n in range(1, 4) for c in combinations(RAW, n)], ids=",".join)
def test_the_pooled_vector_is_the_mean_of_those_given_each_of_length_sqrt_d(subset: tuple[str, ...]) -> None:
    made = encoder(*RAW)
    alone = [made(of({name: True})).pooled for name in subset]
    for vector in alone:
        assert torch.allclose(vector.norm(dim=1), torch.full((4,), 32**0.5), rtol=1e-4)
    together = made(of({name: True for name in subset})).pooled
    assert torch.allclose(together, torch.stack(alone).mean(0), atol=1e-5)


def test_what_is_there_and_not_given_changes_nothing() -> None:
    made = encoder(*RAW)
    some = {"class": torch.tensor([True, False, True, False]), "caption": torch.tensor([False, False, True, True])}
    with_all, without = made(of({**dict.fromkeys(RAW, False), **some})), made(of(some))
    assert torch.equal(with_all.pooled, without.pooled)
    assert with_all.present is not None and without.present is not None
    assert torch.equal(with_all.present.sum(1), without.present.sum(1))


def test_padding_after_a_caption_says_nothing() -> None:
    made = encoder("caption")
    short = made.modality("caption").encode(torch.tensor([[4, 9, 0, 0]]))
    assert short.tokens is not None and short.present is not None
    assert short.present.tolist() == [[True, True, False, False]]
    changed = made.modality("caption").sequence_encoder(  # type: ignore[operator]
        torch.cat([made.modality("caption").table(torch.tensor([[4, 9]])), torch.randn(1, 2, 32)], 1),  # type: ignore[operator]
        short.present,
    )
    assert torch.allclose(changed[1], short.pooled, atol=1e-6)


def test_every_row_has_a_token_even_if_nothing_is_given() -> None:
    condition = encoder("class", "caption")(of({"class": False, "caption": False}))
    assert condition.tokens is not None and condition.present is not None
    assert condition.present.sum(1).tolist() == [1, 1, 1, 1]
    assert torch.equal(condition.tokens[:, 0], condition.pooled)


@pytest.mark.parametrize("name", ["class", "labels", "domain", "caption"])
def test_rows_that_ask_for_just_the_same_are_known(name: str) -> None:
    same = encoder(name).modality(name).same(RAW[name])
    wanted = [[bool(torch.equal(a, b)) for a in RAW[name]] for b in RAW[name]]
    assert same is not None and same.tolist() == wanted


def test_two_recordings_never_ask_for_just_the_same() -> None:
    assert encoder("sound").modality("sound").same(RAW["sound"]) is None


def test_a_mask_becomes_one_map_a_class_and_unknown_pixels_none() -> None:
    mask = torch.tensor([[[0, 1], [255, 1]]])
    assert mask_layout(mask, 2).tolist() == [[[[1, 0], [0, 0]], [[0, 1], [0, 1]]]]


def test_boxes_cover_the_pixels_whose_centres_they_hold() -> None:
    random = np.random.default_rng(3)
    corners = np.sort(random.random((2, 3, 2, 2)), axis=2)
    boxes = np.concatenate([corners.reshape(2, 3, 4)[..., [0, 1, 2, 3]], random.integers(-1, 3, (2, 3, 1))], -1).astype(np.float32)
    found = boxes_layout(torch.from_numpy(boxes), 3, 6, 9).numpy()
    for b in range(2):
        for row in range(6):
            for column in range(9):
                y, x = (row + 0.5) / 6, (column + 0.5) / 9
                inside = {int(k) for x0, y0, x1, y1, k in boxes[b] if k >= 0 and x0 <= x < x1 and y0 <= y < y1}
                assert set(np.flatnonzero(found[b, :, row, column])) == inside


def test_layouts_lie_behind_each_other_and_those_not_given_are_empty() -> None:
    made = encoder("class", "layout", "boxes")
    assert made.names == ["class"] and made.layout_channels == 5
    maps, given = torch.ones(2, 2, 4, 4), torch.tensor([True, False])
    condition = made(Prompt(2, {"layout": maps}, {"layout": given}))
    assert condition.layout is not None
    assert condition.layout[0, :2].eq(1).all()
    assert not condition.layout[0, 2:].any() and not condition.layout[1].any()


def test_conditions_put_together_keep_their_rows_and_lack_what_they_lacked() -> None:
    made = encoder("class", "caption")
    spoken, mute = made(of({"caption": True})), Condition(torch.randn(2, 32), content=torch.ones(2, 1, 4, 4))
    both = Condition.cat([spoken, mute])
    assert both.tokens is not None and both.present is not None and both.content is not None
    assert torch.equal(both.pooled, torch.cat([spoken.pooled, mute.pooled]))
    assert both.present.sum(1).tolist() == [*spoken.present.sum(1).tolist(), 1, 1]  # type: ignore[union-attr]
    assert torch.equal(both.tokens[4:, 0], mute.pooled)
    assert not both.content[:4].any() and both.content[4:].all()
