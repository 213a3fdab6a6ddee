"""What is exchanged: rows keep what belongs to them, and parts are put together with what is missing left out."""

from dataclasses import fields

import pytest
import torch
from helpers import toy

from mtgen.schema import Canvas, Condition, Prompt


def test_rows_of_a_batch_are_the_same_rows_of_everything_in_it() -> None:
    whole, index = toy.batch(0, 10), torch.tensor([7, 2, 2])
    part = whole.rows(index)
    for name in ("position", "image", "label", "mask", "boxes", "labels", "caption", "sound", "domain"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[index])
    assert all(torch.equal(has, whole.present[name][index]) for name, has in part.present.items())
    assert part.step_position is whole.step_position
    assert part.step_present is whole.step_present


def prompt() -> Prompt:
    values = {"class": torch.tensor([0, 1, 2]), "sound": torch.randn(3, 4, 5)}
    return Prompt(3, values, {"class": torch.tensor([True, False, True]), "sound": torch.tensor([False, False, True])})


def test_rows_of_a_prompt_keep_all_that_is_asked_for_in_them() -> None:
    whole, index = prompt(), torch.tensor([2, 0, 2, 1])
    part = whole.rows(index)
    assert len(part) == 4
    for name in whole.values:
        assert torch.equal(part.values[name], whole.values[name][index])
        assert torch.equal(part.given[name], whole.given[name][index])


def test_a_prompt_of_one_modality_alone_asks_for_it_in_the_same_rows() -> None:
    whole = prompt()
    alone = whole.only("sound")
    assert (len(alone), alone.values.keys(), alone.given.keys()) == (3, {"sound"}, {"sound"})
    assert torch.equal(alone.given["sound"], whole.given["sound"])
    alone.given["sound"] = ~alone.given["sound"]
    assert whole.given["sound"].tolist() == [False, False, True]  # the prompt that it came from is as it was


def test_class_numbers_below_0_ask_for_nothing() -> None:
    asked = Prompt.of_classes(torch.tensor([2, -1, 0]))
    assert asked.given["class"].tolist() == [True, False, True]
    assert asked.values["class"].tolist() == [2, 0, 0]


def test_conditions_put_together_have_every_row_and_nothing_where_a_part_is_missing() -> None:
    bare = Condition(torch.randn(2, 4))
    full = Condition(
        torch.randn(3, 4),
        torch.randn(3, 5, 4),
        torch.rand(3, 5) < 0.5,
        torch.randn(3, 2, 8, 8),
        torch.randn(3, 6, 4, 4),
    )
    short = Condition(torch.randn(1, 4), torch.randn(1, 3, 4), torch.tensor([[True, False, True]]))
    joined = Condition.cat([bare, full, short])
    assert torch.equal(joined.pooled, torch.cat([bare.pooled, full.pooled, short.pooled]))
    assert (
        joined.tokens is not None
        and joined.present is not None
        and joined.layout is not None
        and joined.content is not None
    )
    assert full.tokens is not None and full.present is not None and short.tokens is not None
    assert torch.equal(joined.tokens[:2, 0], bare.pooled)  # without tokens: its pooled vector is the one
    assert joined.present[:2].sum(1).tolist() == [1, 1]
    assert torch.equal(joined.tokens[2:5], full.tokens) and torch.equal(joined.present[2:5], full.present)
    assert torch.equal(joined.tokens[5:, :3], short.tokens) and joined.present[5].tolist() == [
        True,
        False,
        True,
        False,
        False,
    ]
    for name in ("layout", "content"):
        found = getattr(joined, name)
        assert torch.equal(found[2:5], getattr(full, name))
        assert not found[:2].any() and not found[5:].any()


def test_conditions_that_all_lack_a_part_lack_it_together() -> None:
    joined = Condition.cat([Condition(torch.randn(2, 4)), Condition(torch.randn(1, 4))])
    assert [getattr(joined, f.name) for f in fields(Condition)[1:]] == [None] * 4


def test_rows_of_a_joined_condition_are_the_conditions_again() -> None:
    one = Condition(torch.randn(2, 4), torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.bool))
    joined = Condition.cat([one, Condition(torch.randn(2, 4))]).rows(slice(2))
    assert all(torch.equal(getattr(joined, name), getattr(one, name)) for name in ("pooled", "tokens", "present"))


def test_canvases_put_together_show_no_label_that_a_part_has_not() -> None:
    bare = Canvas(torch.randn(2, 1, 8, 8))
    masked = Canvas(torch.randn(1, 1, 8, 8), torch.rand(1, 2, 8, 8), torch.tensor([True]))
    boxed = Canvas(torch.randn(3, 1, 8, 8), boxes=torch.rand(3, 5, 4, 4), boxed=torch.tensor([True, False, True]))
    joined = Canvas.cat([bare, masked, boxed])
    assert (
        joined.mask is not None and joined.shown is not None and joined.boxes is not None and joined.boxed is not None
    )
    assert joined.shown.tolist() == [False, False, True, False, False, False]
    assert joined.boxed.tolist() == [False, False, False, True, False, True]
    assert torch.equal(joined.mask[2:3], masked.mask if masked.mask is not None else bare.image)
    assert torch.equal(joined.boxes[3:], boxed.boxes if boxed.boxes is not None else bare.image)
    assert not joined.mask[[0, 1, 3, 4, 5]].any() and not joined.boxes[:3].any()


def test_canvases_without_labels_stay_without() -> None:
    joined = Canvas.cat([Canvas(torch.randn(1, 1, 8, 8)), Canvas(torch.randn(2, 1, 8, 8))])
    assert (joined.mask, joined.shown, joined.boxes, joined.boxed) == (None, None, None, None)
    assert len(joined.image) == 3


@pytest.mark.parametrize("part", ["mask", "boxes"])
def test_what_is_drawn_is_changed_and_what_is_known_of_it_is_not(part: str) -> None:
    canvas = Canvas(
        torch.zeros(1, 1, 2, 2),
        torch.zeros(1, 2, 2, 2),
        torch.tensor([True]),
        torch.zeros(1, 5, 1, 1),
        torch.tensor([True]),
    )
    changed = canvas.map_generated(lambda x, name: x + (2 if name == part else 1))
    assert {name: float(getattr(changed, name).max()) for name in ("image", "mask", "boxes")} == {
        "image": 1,
        "mask": 1,
        "boxes": 1,
    } | {part: 2}
    assert changed.shown is canvas.shown and changed.boxed is canvas.boxed
