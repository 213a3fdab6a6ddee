"""Synthetic scenes: image, mask, boxes, class, labels, caption and sound are consistent."""

import re
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mtgen.shards.recipe import RECIPES
from mtgen.shards.recipes.digits import DigitsRecipe
from mtgen.shards.recipes.shapes import SEMITONES
from mtgen.shards.synthetic import CONTRAST, OBJECT_COLORS, luminance
from mtgen.shards.write import Sample

SEEDS = st.integers(0, 10_000)
COUNTS = st.integers(1, 4)
RECIPE_NAMES = st.sampled_from(["digits", "shapes"])


def draw(name: str, seed: int, limit: int = 1, **options: Any) -> Sample:
    kind = RECIPES[name]
    recipe: Any = kind(kind.Options.model_validate({name: limit, "resolution": 48, **options}), seed)
    return recipe.sample("train", "key", Random(seed))


def bounds(inside: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def far_from_box(sample: Sample) -> np.ndarray:
    """`[H,W]` bool: the pixels that the antialiased edge of the single object cannot reach."""
    assert sample.boxes is not None
    left, top, right, bottom = (int(v) for v in sample.boxes[0][:4])
    outside = np.ones(sample.image.shape[:2], bool)
    outside[max(top - 4, 0) : bottom + 4, max(left - 4, 0) : right + 4] = False
    return outside


@settings(max_examples=60, deadline=None)
@given(RECIPE_NAMES, SEEDS, COUNTS, st.sampled_from(["plain", "textured"]))
def test_boxes_are_the_bounds_of_the_masks(name: str, seed: int, limit: int, background: str) -> None:
    sample = draw(name, seed, limit, background=background)
    assert sample.mask is not None and sample.boxes is not None
    assert 1 <= len(sample.boxes) <= limit
    covered = np.zeros_like(sample.mask, bool)
    for label in {box[4] for box in sample.boxes}:
        corners = np.array([box[:4] for box in sample.boxes if box[4] == label])
        assert bounds(sample.mask == label + 1) == [*corners[:, :2].min(0), *corners[:, 2:].max(0)]
    for left, top, right, bottom, label in np.array(sample.boxes):
        inside = sample.mask[top:bottom, left:right] == label + 1
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
        covered[top:bottom, left:right] |= inside
    assert np.array_equal(covered, sample.mask > 0)


@settings(max_examples=60, deadline=None)
@given(RECIPE_NAMES, SEEDS, COUNTS, st.booleans())
def test_caption_labels_and_class_agree_with_the_boxes(name: str, seed: int, limit: int, textured: bool) -> None:
    sample = draw(name, seed, limit, background="textured" if textured else "plain")
    assert sample.boxes is not None and sample.caption is not None
    in_boxes = [int(box[4]) for box in sample.boxes]
    phrases = re.findall(r"\b(an?) (\w+) (\w+)", sample.caption)
    assert [RECIPES[name].classes.index(noun) for _, _, noun in phrases] == in_boxes  # both from left to right
    assert [box[0] for box in sample.boxes] == sorted(box[0] for box in sample.boxes)
    assert all((article == "an") == (color == "orange") and color in OBJECT_COLORS for article, color, _ in phrases)
    assert sample.labels == sorted(set(in_boxes))
    assert sample.label == (in_boxes[0] if len(in_boxes) == 1 else None)


@settings(max_examples=60, deadline=None)
@given(SEEDS, COUNTS)
def test_the_mask_of_a_gray_digit_has_its_pixels_above_63(seed: int, limit: int) -> None:
    sample = draw("digits", seed, limit, style="gray")
    assert sample.image.shape == (48, 48) and sample.mask is not None
    assert np.array_equal(sample.mask > 0, sample.image > 63)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_the_mask_of_a_shape_has_the_pixels_covered_by_half_or_more(seed: int) -> None:
    sample = draw("shapes", seed)
    assert sample.mask is not None
    image = sample.image.astype(float)
    ground = image[far_from_box(sample)]
    assume(len(ground))
    distance = np.abs(image - ground[0]).sum(2)
    edge = np.abs(distance - distance.max() / 2) <= 6  # rounding of three channels to whole numbers
    assert np.array_equal((sample.mask > 0)[~edge], (distance > distance.max() / 2)[~edge])


@settings(max_examples=60, deadline=None)
@given(RECIPE_NAMES, SEEDS, st.sampled_from(["plain", "textured"]))
def test_objects_contrast_with_every_pixel_of_their_background(name: str, seed: int, background: str) -> None:
    sample = draw(name, seed, background=background)
    assert sample.mask is not None
    around = luminance(sample.image[far_from_box(sample)].astype(float)) + 0.05
    inside = luminance(sample.image[sample.mask > 0].astype(float)) + 0.05
    assume(len(around))
    best = max(inside.max() / around.max(), around.min() / inside.min())
    assert best >= CONTRAST * 0.97  # a thin stroke may not cover any pixel completely


@settings(max_examples=40, deadline=None)
@given(RECIPE_NAMES, SEEDS)
def test_a_single_object_fills_most_of_the_canvas(name: str, seed: int) -> None:
    left, top, right, bottom, _ = draw(name, seed).boxes[0]  # type: ignore[index]
    assert 0.6 * 48 <= max(right - left, bottom - top) <= 48


@settings(max_examples=40, deadline=None)
@given(RECIPE_NAMES, SEEDS)
def test_objects_do_not_touch(name: str, seed: int) -> None:
    sample = draw(name, seed, 4)
    assert sample.mask is not None and sample.boxes is not None
    padded = np.pad(sample.mask, 1)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here, there = padded[1:-1, 1:-1], np.roll(padded, (dy, dx), (0, 1))[1:-1, 1:-1]
        assert not ((here != there) & (here > 0) & (there > 0)).any()


@pytest.fixture(scope="module")
def digits() -> DigitsRecipe:
    return DigitsRecipe(DigitsRecipe.Options.model_validate({}), seed=0)


def test_no_digit_is_in_both_splits(digits: DigitsRecipe) -> None:
    assert (len(digits.pools["train"]), len(digits.pools["test"])) == (4000, 1000)
    assert sorted(digits.pools["train"] + digits.pools["test"]) == list(range(5000))


def test_scenes_of_a_split_use_digits_of_its_pool() -> None:
    maker = DigitsRecipe(DigitsRecipe.Options.model_validate({"train": 10, "test": 10}), seed=0)
    for split, label in (("train", 3), ("test", 7)):
        maker.pools[split] = [i for i in maker.pools[split] if maker.labels[i] == label]
    assert {split: {maker.make(split, i).label for i in range(count)} for split, count in maker.splits.items()} == {
        "train": {3},
        "test": {7},
    }


def test_parts_are_a_balanced_partition_of_the_digits(digits: DigitsRecipe) -> None:
    parts = [DigitsRecipe(DigitsRecipe.Options.model_validate({"part": f"{k}/3"}), seed=0) for k in range(3)]
    for split in ("train", "test"):
        pools = [part.pools[split] for part in parts]
        assert sorted(i for pool in pools for i in pool) == sorted(digits.pools[split])
        for pool in pools:
            counts = np.bincount(digits.labels[pool], minlength=10)
            assert counts.max() - counts.min() <= 1


def test_scenes_of_two_parts_are_not_paired() -> None:
    parts = [DigitsRecipe(DigitsRecipe.Options.model_validate({"part": f"{k}/2"}), seed=0) for k in range(2)]
    same = np.mean([parts[0].make("train", i).label == parts[1].make("train", i).label for i in range(200)])
    assert 0.02 < same < 0.25


def test_domains_have_different_names() -> None:
    names = [
        DigitsRecipe(DigitsRecipe.Options.model_validate({"style": style}), seed=0).name
        for style in ("color", "gray", "inverted")
    ]
    assert names == ["digits", "digits", "digits-inverted"]


@settings(max_examples=40, deadline=None)
@given(SEEDS, COUNTS)
def test_inverted_digits_are_the_same_scenes_in_black_on_a_lighter_texture(seed: int, limit: int) -> None:
    plain, inverted = draw("digits", seed, limit, style="gray"), draw("digits", seed, limit, style="inverted")
    assert np.array_equal(plain.mask, inverted.mask)
    assert (plain.boxes, plain.caption, plain.labels) == (inverted.boxes, inverted.caption, inverted.labels)
    ink = plain.image == 255
    assert inverted.image.shape == (48, 48, 3) and inverted.image[ink].max(initial=0) <= 27
    around = inverted.image[far_from_box(inverted)] if limit == 1 else inverted.image[plain.image == 0]
    if len(around) and ink.any():
        light = luminance(around.astype(float)) + 0.05
        assert light.min() >= CONTRAST * 0.97 * (luminance(inverted.image[ink].astype(float)).max() + 0.05)
        assert len(np.unique(around, axis=0)) > min(len(around), 100) / 4  # a texture, not a single color


def test_digits_of_the_two_splits_differ_in_their_pixels_too(digits: DigitsRecipe) -> None:
    train, test = ({digits.pixels[i].tobytes() for i in digits.pools[split]} for split in ("train", "test"))
    assert not train & test


def test_every_class_has_equally_many_test_digits(digits: DigitsRecipe) -> None:
    assert np.bincount(digits.labels[digits.pools["test"]]).tolist() == [100] * 10


def test_the_test_digits_do_not_depend_on_the_seed(digits: DigitsRecipe) -> None:
    assert DigitsRecipe(digits.options, seed=9).pools == digits.pools


@pytest.mark.parametrize("label", range(8))
def test_the_tone_of_a_shape_has_the_pitch_of_its_class(label: int) -> None:
    sample = next(sample for seed in range(200) if (sample := draw("shapes", seed)).label == label)
    assert sample.sound is not None
    sound, rate = sample.sound
    assert (rate, len(sound), sound.dtype) == (8000, 4000, np.int16)
    spectrum = np.abs(np.fft.rfft(sound, 16 * len(sound)))
    pitch = np.argmax(spectrum) * rate / (16 * len(sound))
    assert abs(12 * np.log2(pitch / 261.63) - SEMITONES[label]) < 0.25  # semitones


@pytest.mark.parametrize(("recipe", "classes"), [("digits", 10), ("shapes", 8)])
def test_classes_are_about_equally_frequent(recipe: str, classes: int) -> None:
    kind = RECIPES[recipe]
    maker = kind(kind.Options.model_validate({"train": 1000, "resolution": 16}), seed=0)
    counts = np.bincount(
        [sample.label or 0 for sample in (maker.make("train", i) for i in range(1000))], minlength=classes
    )
    assert counts.min() > 0.7 * 1000 / classes and counts.max() < 1.3 * 1000 / classes


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_captions_of_gray_digits_have_no_color(seed: int) -> None:
    assert draw("digits", seed, style="gray").caption in [
        f"{'an' if name == 'eight' else 'a'} {name}" for name in DigitsRecipe.classes
    ]
