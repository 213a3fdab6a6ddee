"""What passes through a gate is cut into pieces and put together again, and every piece says which rows it holds."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtgen.balancing.gramian import RowSlice
from mtgen.schema import Canvas
from mtgen.training.feature_bundle import FeatureBundle

IMAGE_ONLY, REMAINING, SUBMITTED = 3, 4, {"translation": 2, "reconstruction": 1}
ROWS = 10


def levels() -> list[Tensor]:
    return [torch.arange(float(ROWS * c * s * s)).reshape(ROWS, c, s, s) for c, s in ((4, 2), (3, 4))]


def test_levels_are_packed_section_by_section_and_the_remaining_rows_have_the_lowest_alone() -> None:
    low, high = levels()
    pieces, slices = FeatureBundle.of_levels([low, high], IMAGE_ONLY, REMAINING, SUBMITTED).pack()
    expected = [(low, 0, 3, 0), (high, 0, 3, 1), (low, 7, 9, 0), (high, 7, 9, 1), (low, 9, 10, 0), (high, 9, 10, 1)]
    expected += [(low, 3, 7, 0)]
    assert slices == [RowSlice(group, first) for _, first, _, group in expected]
    assert all(torch.equal(piece, x[a:b]) for piece, (x, a, b, _) in zip(pieces, expected, strict=True))


def test_a_task_gets_its_features_and_what_it_submitted() -> None:
    low, high = levels()
    bundle = FeatureBundle.of_levels([low, high], IMAGE_ONLY, REMAINING, SUBMITTED)
    pieces, _ = bundle.pack()
    for task, rows in {"translation": slice(7, 9), "reconstruction": slice(9, 10), "classification": None}.items():
        features = bundle.task_features(pieces, task)
        assert all(torch.equal(a, b[:3]) for a, b in zip(features.image_only, (low, high), strict=True))
        assert torch.equal(features.remaining, low[3:7])
        assert torch.equal(features.lowest, low[:7])
        submitted = [] if rows is None else [low[rows], high[rows]]
        assert all(torch.equal(a, b) for a, b in zip(features.submitted, submitted, strict=True))


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("with_boxes", [False, True])
def test_a_canvas_is_cut_by_who_requested_its_rows(with_mask: bool, with_boxes: bool) -> None:
    image = torch.randn(6, 3, 8, 8)
    whole = Canvas.of_logits(
        image, torch.randn(6, 2, 8, 8) if with_mask else None, torch.randn(6, 5, 4, 4) if with_boxes else None
    )
    bundle = FeatureBundle.of_canvas(whole, {"discriminator": 4, "translation": 2})
    pieces, slices = bundle.pack()
    assert slices == [RowSlice(group, first) for group in range(1 + with_mask + with_boxes) for first in (0, 4)]
    for section, rows in (("discriminator", slice(4)), ("translation", slice(4, 6))):
        canvas = bundle.canvas(pieces, section)
        for name in ("image", "mask", "boxes", "mask_logits", "box_logits"):
            found, all_rows = getattr(canvas, name), getattr(whole, name)
            assert found is all_rows is None or torch.equal(found, all_rows[rows])
        assert canvas.shown is None and canvas.boxed is None


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.integers(1, 3), st.randoms(use_true_random=False))
def test_unpacking_what_was_packed_gives_every_section_its_rows(sizes: list[int], tensors: int, random: Any) -> None:
    rows = sum(sizes)
    whole = {k: torch.randn(rows, k + 1) for k in range(tensors)}
    sections = {f"section {k}": size for k, size in enumerate(sizes)}
    order = [(section, k) for section in sections for k in whole]
    random.shuffle(order)
    bundle = FeatureBundle(whole, sections, order)
    pieces, slices = bundle.pack()
    for (section, k), piece, part in zip(order, pieces, slices, strict=True):
        assert len(piece) == sections[section]
        assert torch.equal(piece, whole[part.group][part.first : part.first + len(piece)])
        assert part.group == k
    found = bundle.unpack(pieces)
    for k, tensor in whole.items():
        assert torch.equal(torch.cat([found[section][k] for section in sections]), tensor)
