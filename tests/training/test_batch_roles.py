"""Roles of samples: functions of their positions, so that the workers' parts together are the whole batch."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import toy
from hypothesis import given
from hypothesis import strategies as st

from mtgen.config import Config
from mtgen.training.augment import AdaptiveAugmentation
from mtgen.training.batch_roles import (
    BatchRoles,
    StepRoles,
    assign_roles,
    is_penalized,
    pair_partners,
    prepare_roles,
    shows_labels,
)

TRANSLATING = {"tasks__translation": {"domain": "class", "side": 4, "every": 1}}
CONFIGS = {
    (mask, penalty): toy.config(
        tasks__generation__joint_every=mask, tasks__generation__penalty_every=penalty, **TRANSLATING
    )
    for mask in (2, 3, 4)
    for penalty in (1, 2, 4)
}
configs = st.sampled_from(list(CONFIGS.values()))


def by_role(roles: BatchRoles) -> dict[str, set[int]]:
    """Role -> positions that have it."""
    position = roles.batch.position
    return {
        "all": set(position.tolist()),
        "shown": set(position[roles.shown].tolist()),
        "image_only": set(position[: roles.num_image_only].tolist()),
        "plain": set(position[roles.plain].tolist()),
        "penalized": set(position[roles.penalized].tolist()),
    }


@given(configs, st.integers(0, 10_000), st.integers(1, 40), st.data())
def test_the_parts_of_any_workers_are_together_the_whole(
    config: Config, first: int, size: int, data: st.DataObject
) -> None:
    whole = toy.batch(first, size)
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, size), max_size=4))), size]
    parts = [
        assign_roles(config, whole.rows(slice(a, b)), config.augment.probability)
        for a, b in zip(cuts, cuts[1:], strict=False)
        if a < b
    ]
    alone = assign_roles(config, whole, config.augment.probability)
    assert all(part.counts == alone.counts for part in parts)
    for name, members in by_role(alone).items():
        found = [by_role(part)[name] for part in parts]
        assert set.union(*found) == members
        assert sum(map(len, found)) == len(members)


@given(configs, st.integers(0, 10_000), st.integers(1, 40))
def test_counts_are_those_of_the_rows(config: Config, first: int, size: int) -> None:
    roles = assign_roles(config, toy.batch(first, size), config.augment.probability)
    found = {name: len(members) for name, members in by_role(roles).items()}
    assert found.pop("shown") == roles.counts["all"] - roles.counts["image_only"]
    assert {name: roles.counts[name] for name in found} == found
    image_only = roles.batch.rows(slice(roles.num_image_only))
    assert {name: roles.counts[name] for name in image_only.present} == {
        name: int(has.sum()) for name, has in image_only.present.items()
    }
    plain = roles.batch.rows(roles.plain)
    assert {name: roles.counts[f"plain {name}"] for name in plain.present} == {
        n: int(has.sum()) for n, has in plain.present.items()
    }


@given(configs, st.integers(0, 10_000), st.integers(1, 40))
def test_image_only_rows_come_first_and_each_kind_keeps_its_order(config: Config, first: int, size: int) -> None:
    roles = assign_roles(config, toy.batch(first, size), config.augment.probability)
    assert roles.shown.tolist() == [row >= roles.num_image_only for row in range(size)]
    for rows in (roles.batch.position[: roles.num_image_only], roles.batch.position[roles.num_image_only :]):
        assert rows.tolist() == sorted(rows.tolist())
    assert torch.equal(roles.plain_position, roles.batch.position[roles.plain])
    assert torch.equal(roles.penalized_position, roles.batch.position[roles.penalized])
    assert bool((roles.plain < roles.num_image_only).all())


@given(configs, st.integers(0, 10_000), st.integers(1, 40))
def test_every_row_keeps_its_data(config: Config, first: int, size: int) -> None:
    whole = toy.batch(first, size)
    sorted_batch = assign_roles(config, whole, config.augment.probability).batch
    row = sorted_batch.position - first
    for name in ("image", "label", "mask"):
        assert torch.equal(getattr(sorted_batch, name), getattr(whole, name)[row])
    assert all(torch.equal(has, whole.present[name][row]) for name, has in sorted_batch.present.items())
    assert torch.equal(sorted_batch.step_position, whole.step_position)


@given(st.sampled_from(sorted(CONFIGS)), st.integers(0, 10_000), st.integers(1, 30))
def test_the_roles_of_a_position_are_the_same_in_any_batch(every: tuple[int, int], first: int, size: int) -> None:
    config, whole = CONFIGS[every], toy.batch(first, size)
    one = whole.rows(slice(size // 2, size // 2 + 1))
    one = replace(one, step_position=one.position, step_present=one.present)  # a separate global batch
    alone = by_role(assign_roles(config, one, config.augment.probability))
    among = by_role(assign_roles(config, whole, config.augment.probability))
    assert all((first + size // 2 in among[name]) == (first + size // 2 in members) for name, members in alone.items())


@pytest.mark.parametrize("every", sorted(CONFIGS))
def test_fractions_are_as_configured_over_a_whole_period(every: tuple[int, int]) -> None:
    config, position = CONFIGS[every], torch.arange(144)
    everyone = torch.ones(144, dtype=torch.bool)
    shown, penalized = shows_labels(config, position, everyone), is_penalized(config, position)
    assert int(shown.sum()) == 144 // every[0]
    assert int(penalized.sum()) == 144 // every[1]


@pytest.mark.parametrize("every", sorted(CONFIGS))
def test_joint_and_image_only_rows_are_penalized_equally_often(every: tuple[int, int]) -> None:
    config, position = CONFIGS[every], torch.arange(144)
    shown, penalized = shows_labels(config, position, torch.ones(144, dtype=torch.bool)), is_penalized(config, position)
    assert int((shown & penalized).sum()) == 144 // every[0] // every[1]


def test_a_sample_without_a_mask_is_never_shown() -> None:
    without: Any = torch.zeros(12, dtype=torch.bool)
    assert not shows_labels(CONFIGS[2, 1], torch.arange(12), without).any()


def pairs(roles: BatchRoles) -> set[tuple[int, int]]:
    """The positions of every pair and its partner."""
    position = roles.batch.position
    return {(int(position[row]), int(position[roles.partner[row]])) for row in roles.pairs}


@given(configs, st.integers(0, 10_000), st.integers(1, 40))
def test_partners_have_the_same_slot_and_are_each_others_partners(config: Config, first: int, size: int) -> None:
    roles = assign_roles(config, toy.batch(first, size), config.augment.probability)
    every, position, alone = config.tasks["generation"].joint_every, roles.batch.position, 0
    for row, partner in enumerate(roles.partner.tolist()):
        alone += row == partner
        assert int(roles.partner[partner]) == row
        assert (position[row] - position[partner]) % every == 0
    assert alone == sum((size // every + (slot < size % every)) % 2 for slot in range(every))
    assert roles.counts["pairs"] == len(roles.pairs)
    assert torch.equal(roles.pair_position, position[roles.pairs])


@given(configs, st.integers(0, 10_000), st.integers(1, 40))
def test_pairs_are_plain_rows_with_a_partner_that_is_plain_too(config: Config, first: int, size: int) -> None:
    roles = assign_roles(config, toy.batch(first, size), config.augment.probability)
    plain = set(roles.plain.tolist())
    expected = [row for row in sorted(plain) if row != (partner := int(roles.partner[row])) and partner in plain]
    assert roles.pairs.tolist() == expected


@given(
    configs,
    st.integers(0, 10_000),
    st.sampled_from([(8, 2), (16, 2), (24, 2), (16, 4), (20, 4), (6, 2), (18, 2), (12, 4)]),
)
def test_workers_together_have_the_pairs_of_one_except_for_split_pairs(
    config: Config, first: int, sizes: tuple[int, int]
) -> None:
    size, workers = sizes
    whole, per_worker = toy.batch(first, size), size // workers
    alone = assign_roles(config, whole, config.augment.probability)
    parts = [
        assign_roles(config, whole.rows(slice(w * per_worker, (w + 1) * per_worker)), config.augment.probability)
        for w in range(workers)
    ]
    together = {(a, b) for a, b in pairs(alone) if (a - first) // per_worker == (b - first) // per_worker}
    assert set.union(*map(pairs, parts)) == together
    assert all(part.counts == alone.counts for part in parts)
    if per_worker % (2 * config.tasks["generation"].joint_every) == 0:
        assert together == pairs(alone)


@pytest.mark.parametrize("every", [2, 3, 4])
def test_a_fully_labeled_batch_has_pairs_too(every: int) -> None:
    whole = toy.batch(0, 24)
    for has in whole.present.values():
        has.fill_(True)
    roles = assign_roles(toy.config(tasks__generation__joint_every=every, **TRANSLATING), whole, 0.0)
    assert len(roles.pairs) == roles.num_image_only == 24 - 24 // every


def test_the_fraction_of_pairs_is_as_configured_and_0_without_translation() -> None:
    whole = toy.batch(0, 48)
    for has in whole.present.values():
        has.fill_(True)
    assert not len(assign_roles(toy.config(), whole, 0.0).pairs)
    third = toy.config(tasks__generation__joint_every=4, tasks__translation={"domain": "class", "side": 4, "every": 3})
    assert len(assign_roles(third, whole, 0.0).pairs) == 36 // 3


def test_boxes_are_shown_in_the_slot_of_masks_and_hidden_if_they_are_not_on_the_canvas() -> None:
    config, whole = CONFIGS[2, 4], toy.batch(0, 40)
    with_boxes, without = assign_roles(config, whole, 0.5, boxes=True), assign_roles(config, whole, 0.5)
    assert not without.boxed.any()
    position = with_boxes.batch.position
    for visible, has in ((with_boxes.boxed, whole.present["boxes"]), (with_boxes.shown, whole.present["mask"])):
        assert visible.tolist() == [bool(p % 2 and has[p]) for p in position.tolist()]
    assert with_boxes.num_image_only == int((~(with_boxes.shown | with_boxes.boxed)).sum())


def test_the_worked_example_of_the_documentation() -> None:
    config = toy.config(
        tasks__generation__joint_every=4,
        tasks__generation__penalty_every=2,
        tasks__translation={"domain": "class", "side": 4, "every": 2},
    )
    position = torch.arange(16)
    assert shows_labels(config, position, torch.ones(16) > 0).nonzero().flatten().tolist() == [3, 7, 11, 15]
    assert is_penalized(config, position).nonzero().flatten().tolist() == [0, 2, 5, 7, 8, 10, 13, 15]
    assert pair_partners(config, 16).tolist() == [4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11]
    whole = toy.batch(0, 16)
    for has in whole.present.values():
        has.fill_(True)
    assert pairs(assign_roles(config, whole, 0.0)) == {
        (0, 4),
        (4, 0),
        (2, 6),
        (6, 2),
        (8, 12),
        (12, 8),
        (10, 14),
        (14, 10),
    }


@given(st.integers(2, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 10_000), st.integers(1, 60))
def test_roles_are_those_of_the_closed_formulas(joint: int, penalty: int, every: int, first: int, size: int) -> None:
    """The rules in one expression each, without blocks and slots: saved runs were trained with them."""
    translation = {"domain": "class", "side": 4, "every": every}
    config = toy.config(
        batch_size=18,
        tasks__generation__joint_every=joint,
        tasks__generation__penalty_every=penalty,
        tasks__translation=translation,
    )
    position, index = torch.arange(first, first + size), torch.arange(size)
    labeled = torch.ones(size, dtype=torch.bool)
    assert torch.equal(shows_labels(config, position, labeled), position % joint == joint - 1)
    assert torch.equal(is_penalized(config, position), (position // joint - position % joint) % penalty == 0)
    partner = torch.where(index // joint % 2 == 0, index + joint, index - joint)
    assert torch.equal(pair_partners(config, size), partner)
    whole = toy.batch(first, size)
    for has in whole.present.values():
        has.fill_(True)
    translated = (position // (2 * joint) * joint + position % joint) % every == 0
    expected = {
        (int(position[row]), int(position[partner[row]]))
        for row in range(size)
        if partner[row] < size and translated[row] and position[row] % joint != joint - 1
    }
    assert pairs(assign_roles(config, whole, 0.0)) == expected


def test_a_global_batch_of_other_than_consecutive_positions_is_refused() -> None:
    whole = toy.batch(0, 8)
    with pytest.raises(AssertionError, match="consecutive"):
        assign_roles(CONFIGS[2, 1], replace(whole, step_position=whole.step_position * 2), 0.0)


@given(configs, st.integers(0, 10_000), st.integers(2, 40), st.floats(0, 1), st.data())
def test_roles_that_a_loader_prepared_are_those_made_by_the_step(
    config: Config, first: int, size: int, augmented: float, data: st.DataObject
) -> None:
    whole = toy.batch(first, size)
    ready = prepare_roles(config, AdaptiveAugmentation(config.augment), boxes=True)(whole)
    a, b = sorted(data.draw(st.lists(st.integers(0, size), min_size=2, max_size=2, unique=True)))
    for probability in (config.augment.probability, augmented):  # an adaptive one may have changed since
        one, other = (assign_roles(config, part.rows(slice(a, b)), probability, boxes=True) for part in (ready, whole))
        assert one.counts == other.counts and one.num_image_only == other.num_image_only
        names = ("shown", "boxed", "plain", "partner", "pairs", "pair_position", "penalized", "penalized_position")
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def test_the_counts_of_a_prepared_batch_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS[2, 2]
    batch = prepare_roles(config, AdaptiveAugmentation(config.augment), boxes=False)(toy.batch(0, 32))
    made: list[StepRoles] = []
    monkeypatch.setattr(StepRoles, "__init__", lambda self, *_: made.append(self))
    monkeypatch.setattr(StepRoles, "_at", lambda self, augmented: made.append(self))
    for begin in range(0, 32, 4):
        roles = assign_roles(config, batch.rows(slice(begin, begin + 4)), config.augment.probability)
        assert roles.counts is batch.step_roles.at(config.augment.probability).counts
    assert not made


def test_roles_for_another_canvas_are_refused() -> None:
    config = CONFIGS[2, 2]
    batch = prepare_roles(config, AdaptiveAugmentation(config.augment), boxes=False)(toy.batch(0, 8))
    with pytest.raises(AssertionError, match="another canvas"):
        assign_roles(config, batch, 0.5, boxes=True)
