"""Which sample plays which part: functions of its position, so that workers' shares put together are the whole."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import toy
from hypothesis import given
from hypothesis import strategies as st

from mtgen.config import Config
from mtgen.training.batch_roles import BatchRoles, assign_roles, is_penalized, shows_labels

TRANSLATING = {"tasks__translation": {"domain": "class", "side": 4, "every": 1}}
CONFIGS = {
    (mask, penalty): toy.config(
        tasks__generation__joint_every=mask, tasks__generation__penalty_every=penalty, **TRANSLATING
    )
    for mask in (2, 3, 4)
    for penalty in (1, 2, 4)
}
configs = st.sampled_from(list(CONFIGS.values()))


def parts(layout: BatchRoles) -> dict[str, set[int]]:
    """Positions by the part that they play."""
    position = layout.batch.position
    return {
        "all": set(position.tolist()),
        "shown": set(position[layout.shown].tolist()),
        "reading": set(position[: layout.reading].tolist()),
        "plain": set(position[layout.plain].tolist()),
        "penalized": set(position[layout.penalized].tolist()),
    }


@given(configs, st.integers(0, 10_000), st.integers(1, 40), st.data())
def test_the_shares_of_any_workers_are_together_the_whole(
    config: Config, first: int, size: int, data: st.DataObject
) -> None:
    whole = toy.batch(first, size)
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, size), max_size=4))), size]
    shares = [
        assign_roles(config, whole.rows(slice(a, b)), config.augment.probability)
        for a, b in zip(cuts, cuts[1:], strict=False)
        if a < b
    ]
    alone = assign_roles(config, whole, config.augment.probability)
    assert all(share.counts == alone.counts for share in shares)
    for name, members in parts(alone).items():
        found = [parts(share)[name] for share in shares]
        assert set.union(*found) == members
        assert sum(map(len, found)) == len(members)


@given(configs, st.integers(0, 10_000), st.integers(1, 40))
def test_counts_are_those_of_the_rows(config: Config, first: int, size: int) -> None:
    layout = assign_roles(config, toy.batch(first, size), config.augment.probability)
    found = {name: len(members) for name, members in parts(layout).items()}
    assert found.pop("shown") == layout.counts["all"] - layout.counts["reading"]
    assert {name: layout.counts[name] for name in found} == found
    reading = layout.batch.rows(slice(layout.reading))
    assert {name: layout.counts[name] for name in reading.present} == {
        name: int(has.sum()) for name, has in reading.present.items()
    }
    plain = layout.batch.rows(layout.plain)
    assert {name: layout.counts[f"plain {name}"] for name in plain.present} == {
        n: int(has.sum()) for n, has in plain.present.items()
    }


@given(configs, st.integers(0, 10_000), st.integers(1, 40))
def test_reading_rows_come_first_and_each_kind_keeps_its_order(config: Config, first: int, size: int) -> None:
    layout = assign_roles(config, toy.batch(first, size), config.augment.probability)
    assert layout.shown.tolist() == [row >= layout.reading for row in range(size)]
    for rows in (layout.batch.position[: layout.reading], layout.batch.position[layout.reading :]):
        assert rows.tolist() == sorted(rows.tolist())
    assert torch.equal(layout.plain_position, layout.batch.position[layout.plain])
    assert torch.equal(layout.penalized_position, layout.batch.position[layout.penalized])
    assert bool((layout.plain < layout.reading).all())


@given(configs, st.integers(0, 10_000), st.integers(1, 40))
def test_every_row_keeps_what_belongs_to_it(config: Config, first: int, size: int) -> None:
    whole = toy.batch(first, size)
    sorted_batch = assign_roles(config, whole, config.augment.probability).batch
    row = sorted_batch.position - first
    for name in ("image", "label", "mask"):
        assert torch.equal(getattr(sorted_batch, name), getattr(whole, name)[row])
    assert all(torch.equal(has, whole.present[name][row]) for name, has in sorted_batch.present.items())
    assert torch.equal(sorted_batch.step_position, whole.step_position)


@given(st.sampled_from(sorted(CONFIGS)), st.integers(0, 10_000), st.integers(1, 30))
def test_the_part_of_a_position_is_the_same_in_any_batch(every: tuple[int, int], first: int, size: int) -> None:
    config, whole = CONFIGS[every], toy.batch(first, size)
    one = whole.rows(slice(size // 2, size // 2 + 1))
    one = replace(one, step_position=one.position, step_present=one.present)  # a global batch of its own
    alone, among = (
        parts(assign_roles(config, one, config.augment.probability)),
        parts(assign_roles(config, whole, config.augment.probability)),
    )
    assert all((first + size // 2 in among[name]) == (first + size // 2 in members) for name, members in alone.items())


@pytest.mark.parametrize("every", sorted(CONFIGS))
def test_shares_are_as_configured_over_any_whole_period(every: tuple[int, int]) -> None:
    config, position = CONFIGS[every], torch.arange(144)
    everyone = torch.ones(144, dtype=torch.bool)
    shown, penalized = shows_labels(config, position, everyone), is_penalized(config, position)
    assert int(shown.sum()) == 144 // every[0]
    assert int(penalized.sum()) == 144 // every[1]


@pytest.mark.parametrize("every", sorted(CONFIGS))
def test_penalties_fall_on_rows_with_and_without_their_mask_alike(every: tuple[int, int]) -> None:
    config, position = CONFIGS[every], torch.arange(144)
    shown, penalized = shows_labels(config, position, torch.ones(144, dtype=torch.bool)), is_penalized(config, position)
    assert int((shown & penalized).sum()) == 144 // every[0] // every[1]


def test_a_sample_without_a_mask_is_never_shown() -> None:
    without: Any = torch.zeros(12, dtype=torch.bool)
    assert not shows_labels(CONFIGS[2, 1], torch.arange(12), without).any()


def pairs(layout: BatchRoles) -> set[tuple[int, int]]:
    """Every pair's position and that of its partner."""
    position = layout.batch.position
    return {(int(position[row]), int(position[layout.partner[row]])) for row in layout.pairs}


@given(configs, st.integers(0, 10_000), st.integers(1, 40))
def test_partners_are_of_one_turn_and_each_others(config: Config, first: int, size: int) -> None:
    layout = assign_roles(config, toy.batch(first, size), config.augment.probability)
    every, position, alone = config.tasks["generation"].joint_every, layout.batch.position, 0
    for row, partner in enumerate(layout.partner.tolist()):
        alone += row == partner
        assert int(layout.partner[partner]) == row
        assert (position[row] - position[partner]) % every == 0
    assert alone == sum((size // every + (turn < size % every)) % 2 for turn in range(every))
    assert layout.counts["pairs"] == len(layout.pairs)
    assert torch.equal(layout.pair_position, position[layout.pairs])


@given(configs, st.integers(0, 10_000), st.integers(1, 40))
def test_pairs_are_plain_rows_with_a_partner_that_is_plain_too(config: Config, first: int, size: int) -> None:
    layout = assign_roles(config, toy.batch(first, size), config.augment.probability)
    plain = set(layout.plain.tolist())
    expected = [row for row in sorted(plain) if row != (partner := int(layout.partner[row])) and partner in plain]
    assert layout.pairs.tolist() == expected


@given(
    configs,
    st.integers(0, 10_000),
    st.sampled_from([(8, 2), (16, 2), (24, 2), (16, 4), (20, 4), (6, 2), (18, 2), (12, 4)]),
)
def test_workers_together_have_the_pairs_of_one_but_for_those_that_were_split(
    config: Config, first: int, sizes: tuple[int, int]
) -> None:
    size, workers = sizes
    whole, share = toy.batch(first, size), size // workers
    alone = assign_roles(config, whole, config.augment.probability)
    parts = [
        assign_roles(config, whole.rows(slice(w * share, (w + 1) * share)), config.augment.probability)
        for w in range(workers)
    ]
    together = {(a, b) for a, b in pairs(alone) if (a - first) // share == (b - first) // share}
    assert set.union(*map(pairs, parts)) == together
    assert all(part.counts == alone.counts for part in parts)
    if share % (2 * config.tasks["generation"].joint_every) == 0:
        assert together == pairs(alone)


@pytest.mark.parametrize("every", [2, 3, 4])
def test_where_every_sample_is_labeled_there_are_pairs_all_the_same(every: int) -> None:
    whole = toy.batch(0, 24)
    for has in whole.present.values():
        has.fill_(True)
    layout = assign_roles(toy.config(tasks__generation__joint_every=every, **TRANSLATING), whole, 0.0)
    assert len(layout.pairs) == layout.reading == 24 - 24 // every


def test_a_run_that_does_not_translate_has_no_pairs_and_one_of_every_third_pair_has_a_third() -> None:
    whole = toy.batch(0, 48)
    for has in whole.present.values():
        has.fill_(True)
    assert not len(assign_roles(toy.config(), whole, 0.0).pairs)
    third = toy.config(tasks__generation__joint_every=4, tasks__translation={"domain": "class", "side": 4, "every": 3})
    assert len(assign_roles(third, whole, 0.0).pairs) == 36 // 3


def test_boxes_are_judged_where_masks_are_and_hidden_where_they_are_not_drawn() -> None:
    config, whole = CONFIGS[2, 4], toy.batch(0, 40)
    with_boxes, without = assign_roles(config, whole, 0.5, boxes=True), assign_roles(config, whole, 0.5)
    assert not without.boxed.any()
    position = with_boxes.batch.position
    for turn, has in ((with_boxes.boxed, whole.present["boxes"]), (with_boxes.shown, whole.present["mask"])):
        assert turn.tolist() == [bool(p % 2 and has[p]) for p in position.tolist()]
    assert with_boxes.reading == int((~(with_boxes.shown | with_boxes.boxed)).sum())
