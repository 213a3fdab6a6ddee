"""Grids of images."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor
from torch import Tensor
from torch.nn import functional as F

from mtgen.schema import IGNORE_INDEX, Batch, Canvas, DatasetCard, Prediction
from mtgen.visualization.grids import (
    condition_grid,
    enlarged_overlay,
    mask_colors,
    overlay,
    prediction_grid,
    reconstruction_grid,
    sample_grid,
    to_pixels,
    to_uint8,
    translation_grid,
)

CORRECT, WRONG, UNKNOWN = (ImageColor.getrgb(color) for color in ("#0072B2", "#D55E00", "#777777"))
MASKS = ["background", "a", "b"]


def card(classes: int = 3) -> DatasetCard:
    return DatasetCard(name="test", classes=[f"class{i}" for i in range(classes)], mask_classes=MASKS, splits={})


def shade(level: int, side: int = 32) -> Tensor:
    """An image of one color, which no letter has."""
    return torch.tensor([level, 10, 200]).view(3, 1, 1).expand(3, side, side) / 127.5 - 1


def where(picture: Image.Image, level: int) -> np.ndarray:
    """Rows and columns of the pixels of `shade(level)`, `[N,2]`."""
    return np.argwhere((np.asarray(picture) == [level, 10, 200]).all(2))


def pixels_of(picture: Image.Image, color: tuple[int, ...]) -> int:
    return int((np.asarray(picture) == color).all(2).sum())


def test_uint8_of_the_whole_range() -> None:
    assert to_uint8(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])).tolist() == [0, 0, 128, 255, 255]


@given(st.integers(0, 255))
def test_uint8_of_a_stored_pixel_is_that_pixel(level: int) -> None:
    assert int(to_uint8(torch.tensor(level / 127.5 - 1))) == level


def test_gray_images_become_rgb_pixels() -> None:
    pixels = to_pixels(torch.full((1, 1, 4, 4), 100 / 127.5 - 1))
    assert pixels.shape == (1, 4, 4, 3) and (pixels == 100).all()


def test_the_background_has_no_color_and_up_to_30_classes_have_one_of_their_own() -> None:
    colors = mask_colors(["background", *map(str, range(30))])
    assert (colors[0] < 0).all()
    assert len({tuple(color) for color in colors.tolist()}) == 31


# Machado, Oliveira and Fernandes 2009, severity 1: how linear RGB looks with each kind of color blindness
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("vision", VISION)
def test_the_first_ten_colors_are_told_apart_with_any_color_vision(vision: str) -> None:
    srgb = mask_colors([str(i) for i in range(10)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(VISION[vision]).T, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = seen @ to_xyz.T / [0.95047, 1, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2)
    assert distance[~np.eye(10, dtype=bool)].min() > 16  # 2.3 is a just noticeable difference


def test_an_overlay_leaves_the_background_as_it_is() -> None:
    pixels, mask = (
        np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8),
        np.zeros((8, 8), dtype=np.uint8),
    )
    mask[2:6, 2:6] = 1
    assert (overlay(pixels, mask, MASKS)[mask == 0] == pixels[mask == 0]).all()


def test_an_overlay_has_full_color_at_the_outline_and_lets_the_image_through_inside() -> None:
    pixels, mask = np.full((8, 8, 3), 255, dtype=np.uint8), np.zeros((8, 8), dtype=np.uint8)
    mask[1:7, 1:7] = 2
    drawn, color = overlay(pixels, mask, MASKS), mask_colors(MASKS)[2]
    assert (drawn[1, 1:7] == color).all() and (drawn[1:7, 6] == color).all()
    assert (drawn[3, 3] == np.round(0.4 * 255 + 0.6 * color)).all()


def test_unknown_pixels_are_drawn_gray() -> None:
    drawn = overlay(np.zeros((4, 4, 3), dtype=np.uint8), np.full((4, 4), IGNORE_INDEX), MASKS)
    assert (drawn == round(0.6 * 128)).all()


def test_a_small_picture_is_enlarged_with_its_mask() -> None:
    assert enlarged_overlay(Image.new("L", (16, 16)), np.zeros((16, 16), dtype=np.uint8), MASKS).size == (64, 64)


def test_samples_are_in_the_column_of_their_class() -> None:
    labels = torch.tensor([2, 0, 1, 1, 2, 0])
    picture = sample_grid(Canvas(torch.stack([shade(50 + 60 * k) for k in labels.tolist()])), labels, card())
    columns = [where(picture, 50 + 60 * k)[:, 1] for k in range(3)]
    assert columns[0].max() < columns[1].min() and columns[1].max() < columns[2].min()


def test_every_sample_is_shown_enlarged_by_a_whole_factor() -> None:
    labels = torch.arange(7) % 3
    picture = sample_grid(Canvas(torch.stack([shade(100)] * 7)), labels, card())
    assert len(where(picture, 100)) == 7 * 64 * 64


@pytest.mark.parametrize(("side", "scale", "shown"), [(28, None, 84), (32, None, 64), (96, None, 96), (32, 3, 96)])
def test_images_are_enlarged_until_well_visible(side: int, scale: int | None, shown: int) -> None:
    picture = sample_grid(Canvas(shade(100, side)[None]), torch.tensor([0]), card(), scale)
    assert len(where(picture, 100)) == shown**2


def test_a_sample_is_shown_beside_itself_with_its_mask() -> None:
    mask = torch.zeros(1, 32, 32, dtype=torch.int64)
    mask[:, 8:24, 8:24] = 1
    picture = sample_grid(
        Canvas(shade(100)[None], F.one_hot(mask, 3).movedim(-1, 1).float()), torch.tensor([0]), card()
    )
    assert len(where(picture, 100)) == 64 * 64 + 64 * 64 - 32 * 32
    assert pixels_of(picture, tuple(mask_colors(MASKS)[1])) == 4 * 32 - 4  # its outline


def test_the_name_of_its_class_is_above_a_column() -> None:
    canvas, labels = Canvas(torch.stack([shade(100)] * 4)), torch.tensor([0, 0, 1, 1])
    other = card().model_copy(update={"classes": ["class0", "another", "class2"]})
    first, second = (np.asarray(sample_grid(canvas, labels, names)).astype(int) for names in (card(), other))
    changed = np.argwhere((first != second).any(2))
    cells = np.argwhere((first == [100, 10, 200]).all(2))
    assert changed[:, 0].max() < cells[:, 0].min() and changed[:, 1].min() > first.shape[1] // 4


def test_a_name_that_is_too_long_is_cut_to_its_column() -> None:
    canvas, labels = Canvas(torch.stack([shade(100)] * 2)), torch.tensor([0, 1])
    long = card(2).model_copy(update={"classes": ["x" * 200, "y"]})
    short = card(2).model_copy(update={"classes": ["", "y"]})
    first, second = (np.asarray(sample_grid(canvas, labels, names)).astype(int) for names in (long, short))
    changed = np.argwhere((first != second).any(2))[:, 1]
    assert changed.max() - changed.min() < 5 * 64 + 4 * 8  # the class has five columns, each with its name
    assert len(changed) > 0


def test_more_than_ten_classes_continue_below() -> None:
    labels = torch.arange(25).repeat(2)
    picture = sample_grid(Canvas(torch.stack([shade(int(k) * 5 + 100) for k in labels])), labels, card(25))
    assert where(picture, 100)[:, 0].max() < where(picture, 150)[:, 0].min()
    assert where(picture, 150)[:, 1].tolist() == where(picture, 100)[:, 1].tolist()
    assert all(len(where(picture, k * 5 + 100)) == 2 * 64 * 64 for k in range(25))


def test_samples_of_one_class_fill_a_square() -> None:
    picture = sample_grid(Canvas(torch.stack([shade(100)] * 16)), torch.full((16,), 1), card())
    assert picture.width == pytest.approx(picture.height, rel=0.15)


def test_samples_of_a_data_set_without_classes_are_shown() -> None:
    picture = sample_grid(Canvas(torch.stack([shade(100)] * 5)), torch.full((5,), -1), card(0))
    assert len(where(picture, 100)) == 5 * 64 * 64


def test_samples_without_a_class_are_shown_as_such() -> None:
    labels = torch.tensor([-1, -1, 0])
    picture = sample_grid(Canvas(torch.stack([shade(50), shade(50), shade(100)])), labels, card())
    assert where(picture, 50)[:, 1].max() < where(picture, 100)[:, 1].min()


def test_samples_without_a_class_are_not_under_the_last_class() -> None:
    canvas, labels = Canvas(torch.stack([shade(50)] * 2)), torch.tensor([-1, -1])
    other = card().model_copy(update={"classes": ["class0", "class1", "the last"]})
    assert np.array_equal(
        np.asarray(sample_grid(canvas, labels, card())), np.asarray(sample_grid(canvas, labels, other))
    )


def predicted_batch(predicted: list[int], true: list[int]) -> tuple[Batch, Prediction]:
    """Three-class images, class -1: unknown, with masks of class 1 that are predicted as class 2."""
    n, label = len(predicted), torch.tensor(true)
    mask = torch.zeros(n, 32, 32, dtype=torch.int64)
    mask[:, 8:24, 8:24] = 1
    present = {"class": label >= 0, "mask": torch.ones(n, dtype=torch.bool)}
    order = torch.arange(n)
    batch = Batch(order, torch.stack([shade(100)] * n), label.clamp(min=0), mask, present, order, present)
    logits, masks = F.one_hot(torch.tensor(predicted), 3).float(), F.one_hot(mask * 2, 3).movedim(-1, 1).float()
    return batch, Prediction(class_logits=logits, mask_logits=masks)


@pytest.mark.parametrize(("predicted", "true", "color"), [(1, 1, CORRECT), (2, 1, WRONG), (1, -1, UNKNOWN)])
def test_the_predicted_class_has_the_color_of_its_verdict(predicted: int, true: int, color: tuple[int, ...]) -> None:
    picture = prediction_grid(*predicted_batch([predicted], [true]), card())
    assert [pixels_of(picture, c) > 5 for c in (CORRECT, WRONG, UNKNOWN)] == [
        c == color for c in (CORRECT, WRONG, UNKNOWN)
    ]


def test_a_prediction_shows_the_image_its_true_mask_and_its_predicted_mask() -> None:
    picture = prediction_grid(*predicted_batch([0], [0]), card())
    pixels, colors = np.asarray(picture), mask_colors(MASKS)
    plain = where(picture, 100)[:, 1].min()
    true, predicted = (np.argwhere((pixels == colors[k]).all(2))[:, 1].min() for k in (1, 2))
    assert plain < true < predicted
    assert predicted - true == 64 + 2


def test_a_prediction_without_classes_and_masks_shows_the_images() -> None:
    batch, _ = predicted_batch([0, 0], [-1, -1])
    batch.present["mask"][:] = False
    assert len(where(prediction_grid(batch, Prediction(), card()), 100)) == 2 * 64 * 64


def test_a_reconstruction_is_beside_its_image() -> None:
    picture = reconstruction_grid(torch.stack([shade(50)] * 3), torch.stack([shade(150)] * 3))
    first, second = where(picture, 50)[:, 1], where(picture, 150)[:, 1]
    assert len(first) == len(second) == 3 * 64 * 64
    assert second.min() - first.min() == 64 + 2


@pytest.mark.parametrize(
    "make",
    [lambda i: sample_grid(Canvas(i), torch.zeros(2, dtype=torch.int64), card()), lambda i: reconstruction_grid(i, i)],
)
def test_color_images_keep_their_colors(make: Callable[[Tensor], Image.Image]) -> None:
    image = torch.tensor([1.0, -1.0, 0.2]).view(1, 3, 1, 1).expand(2, 3, 32, 32)
    assert pixels_of(make(image), (255, 0, 153)) >= 2 * 64 * 64


def test_boxes_are_framed_in_the_color_of_their_class_and_those_of_a_low_score_are_not_shown() -> None:
    boxes = torch.tensor([[[0.25, 0.25, 0.75, 0.75, 1.0, 0.9], [0.1, 0.1, 0.9, 0.9, 0.0, 0.1]]])
    picture = sample_grid(Canvas(shade(100)[None]), torch.tensor([0]), card(), boxes=boxes)
    first, second = (tuple(color) for color in mask_colors(["0", "1"]))
    assert (
        pixels_of(picture, second) == 4 * 33 - 4 and pixels_of(picture, first) == 0
    )  # a line of one pixel from 16 to 48


def test_a_prediction_shows_true_and_predicted_boxes() -> None:
    batch, prediction = predicted_batch([0], [0])
    batch.boxes = torch.tensor([[[0.25, 0.25, 0.75, 0.75, 0.0], [0.0, 0.0, 0.0, 0.0, -1.0]]])
    prediction.boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5, 0.0, 0.8]]])
    batch.present["mask"][:], prediction.mask_logits = False, None
    color = mask_colors(["0"])[0]
    framed = np.argwhere((np.asarray(prediction_grid(batch, prediction, card())) == color).all(2))
    assert np.ptp(framed[:, 1]) > 64 and len(framed) == 2 * (4 * 33 - 4)


def test_the_condition_is_before_the_generated_image() -> None:
    picture = condition_grid("", [""] * 3, torch.stack([shade(50)] * 3), Canvas(torch.stack([shade(150)] * 3)), card())
    assert where(picture, 150)[:, 1].min() - where(picture, 50)[:, 1].min() == 64 + 2


def test_a_layout_is_shown_in_the_colors_of_its_mask() -> None:
    mask = torch.zeros(1, 32, 32, dtype=torch.int64)
    mask[:, 8:24, 8:24] = 1
    assert (
        pixels_of(condition_grid("", [""], mask, Canvas(shade(150)[None]), card()), tuple(mask_colors(MASKS)[1]))
        == 4 * 32 - 4
    )


def test_words_do_not_change_the_generated_image() -> None:
    assert (
        len(where(condition_grid("captions", ["a", "b"], None, Canvas(torch.stack([shade(150)] * 2)), card()), 150))
        == 2 * 64 * 64
    )


def test_translations_are_in_the_row_of_their_original_and_the_column_of_their_domain() -> None:
    picture = translation_grid(
        torch.stack([shade(50)] * 2), [("a", torch.stack([shade(100)] * 2)), ("b", torch.stack([shade(150)] * 2))]
    )
    columns = [where(picture, level)[:, 1] for level in (50, 100, 150)]
    assert columns[0].max() < columns[1].min() and columns[1].max() < columns[2].min()
