"""The recipe masks: Cityscapes' layout, patterns of names, values and colors of classes, and clear errors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.made_shards import made, picture

from mtgen.data.dataset_card import read_card
from mtgen.errors import ConfigError, DataError
from mtgen.shards.listing import Listing
from mtgen.shards.make import make
from mtgen.shards.recipe import RECIPES
from mtgen.shards.recipes.masks import MasksOptions


def mask(*values: int) -> np.ndarray:
    """`[12,16]`: equal columns of the values."""
    return np.array(values, np.uint8).repeat(16 // len(values))[None].repeat(12, 0)


def pairs(root: Path, image: str, mask_name: str, values: np.ndarray, names: tuple[str, ...] = ("a", "b")) -> None:
    for i, name in enumerate(names):
        picture(root / image.format(name), i)
        picture(root / mask_name.format(name), image=values)


def test_cityscapes(tmp_path: Path) -> None:
    """The 19 classes in the order of their train ids; everything else is unknown; test images have no known pixel."""
    root = tmp_path / "in"
    for i, (split, city) in enumerate((("train", "aachen"), ("val", "köln"), ("test", "berlin"))):
        name = f"{split}/{city}/{city}_000000_000019"
        picture(root / f"leftImg8bit/{name}_leftImg8bit.png", i)
        picture(root / f"gtFine/{name}_gtFine_labelIds.png", image=mask(7, 26, 4, 0) if i < 2 else mask(0, 1, 3, 255))
        picture(root / f"gtFine/{name}_gtFine_instanceIds.png", image=mask(1))
        picture(root / f"gtFine/{name}_gtFine_color.png")
    train, val, test = made("masks", tmp_path / "out", root=str(root), layout="cityscapes")
    assert (train["split"], val["split"], test["split"]) == ("train", "val", "test") and "mask" not in test
    assert train["mask"][0] == ["road"] * 4 + ["car"] * 4 + ["?"] * 8
    assert read_card(tmp_path / "out").mask_classes[:3] == ["road", "sidewalk", "building"]


@pytest.mark.parametrize(
    ("image", "mask_name", "patterns"),
    [
        ("train/images/{}.jpg", "train/masks/{}.png", ("SPLIT/images/NAME", "SPLIT/masks/NAME")),
        ("images/{}.jpg", "masks/{}.png", ("images/NAME", "masks/NAME")),
        ("{}.jpg", "{}_mask.png", ("NAME", "NAME_mask")),
        ("a.b/x {}.png", "a.b/x {}_mask.png", ("NAME", "NAME_mask")),
        ("ISIC_{}.jpg", "ISIC_{}_segmentation.png", ("NAME", "NAME_segmentation")),
    ],
)
def test_usual_names_are_proposed_and_read(
    tmp_path: Path, image: str, mask_name: str, patterns: tuple[str, str]
) -> None:
    pairs(tmp_path / "in", image, mask_name, mask(0, 1))
    (proposal,) = RECIPES["masks"].detect(Listing.of(tmp_path / "in"))
    assert (proposal.options["image"], proposal.options["mask"]) == patterns
    found = made("masks", tmp_path / "out", **proposal.options, mask_classes=["ground", "thing"])
    assert len(found) == 2 and all(item["mask"][0] == ["ground"] * 8 + ["thing"] * 8 for item in found)


def test_carvana_has_gif_masks_of_two_colors_in_another_folder(tmp_path: Path) -> None:
    """Values of a palette are the numbers of its colors: black and white are 0 and 1."""
    pairs(tmp_path / "in", "train/{}.jpg", "train_masks/{}_mask.gif", mask(0, 255))
    options = {"root": str(tmp_path / "in"), "image": "train/NAME.jpg", "mask": "train_masks/NAME_mask.gif"}
    assert made("masks", tmp_path / "out", **options)[0]["mask"][0] == ["class 0"] * 8 + ["class 1"] * 8


def test_values_0_and_255_have_to_be_explained(tmp_path: Path) -> None:
    pairs(tmp_path / "in", "images/{}.jpg", "masks/{}.png", mask(0, 255))
    options: dict[str, Any] = {"root": str(tmp_path / "in")}
    with pytest.raises(DataError, match=r"no class but 0 .*write mask_values=\[0,255\] mask_classes="):
        make("masks", tmp_path / "out", **options)
    options |= {"mask_values": [0, 255], "mask_classes": ["background", "car"]}
    assert made("masks", tmp_path / "out", **options)[0]["mask"][0] == ["background"] * 8 + ["car"] * 8


def test_ade20k_begins_at_1_and_0_is_unknown(tmp_path: Path) -> None:
    pairs(tmp_path / "in", "images/training/{}.jpg", "annotations/training/{}.png", mask(0, 1, 150, 2))
    found = made("masks", tmp_path / "out", root=str(tmp_path / "in"), layout="ade20k")
    assert found[0]["mask"][0] == ["?"] * 4 + ["class 0"] * 4 + ["class 149"] * 4 + ["class 1"] * 4


def test_color_masks_with_camvids_list_of_colors(tmp_path: Path) -> None:
    colors = (
        np.array([[64, 128, 64], [192, 0, 128], [0, 0, 0], [64, 128, 64]], np.uint8).repeat(4, 0)[None].repeat(12, 0)
    )
    pairs(tmp_path / "in", "images/{}.png", "labels/{}_L.png", colors)
    (tmp_path / "label_colors.txt").write_text("64 128 64\tAnimal\n192 0 128\tArchway\n")
    options: dict[str, Any] = {"root": str(tmp_path / "in"), "mask": "labels/NAME_L"}
    options["mask_classes"] = str(tmp_path / "label_colors.txt")
    with pytest.raises(DataError, match=r"a_L.png: colors without a mask class: \(0, 0, 0\); .*unknown=rest"):
        make("masks", tmp_path / "out", **options)
    found = made("masks", tmp_path / "out", **options, unknown="rest")
    assert found[0]["mask"][0] == ["Animal"] * 4 + ["Archway"] * 4 + ["?"] * 4 + ["Animal"] * 4


def test_what_has_no_partner_is_counted(tmp_path: Path) -> None:
    pairs(tmp_path, "images/{}.jpg", "masks/{}.png", mask(0, 1))
    picture(tmp_path / "images/c.jpg")
    picture(tmp_path / "masks/d.png", image=mask(0, 1))
    (tmp_path / "readme.txt").write_text("x")
    maker = RECIPES["masks"](MasksOptions(root=str(tmp_path)), 0)
    assert maker.notices == ["1 of 3 images have no mask"]
    assert maker.left_alone.lines() == [
        "1 files that are not images (readme.txt)",
        "1 masks without an image (masks/d.png)",
    ]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (mask(0, 9), {"mask_classes": ["a", "b"]}, "mask_values without a mask class: 9"),
        (np.zeros((12, 16, 3), np.uint8) + [[[1, 2, 3]]], {}, "has colors; name the color of each class"),
        (mask(0, 1), {"mask": "masks/NAME_x"}, r"no image has a mask; the one of .*a.jpg would be .*masks/a_x"),
        (mask(0, 1), {"image": "pictures/NAME"}, "no image in .* matches; correct the pattern"),
    ],
)
def test_a_wrong_input_is_one_clear_error(
    tmp_path: Path, values: np.ndarray, options: dict[str, Any], message: str
) -> None:
    pairs(tmp_path / "in", "images/{}.jpg", "masks/{}.png", values.astype(np.uint8))
    with pytest.raises(DataError, match=message):
        make("masks", tmp_path / "out", root=str(tmp_path / "in"), **options)


def test_a_jpeg_is_refused_as_a_mask(tmp_path: Path) -> None:
    pairs(tmp_path / "in", "images/{}.jpg", "masks/{}.jpg", mask(0, 1))
    with pytest.raises(DataError, match="a mask in JPEG, whose values are blurred"):
        make("masks", tmp_path / "out", root=str(tmp_path / "in"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_values": [1, 2], "mask_classes": ["a"]}, "mask_values has 2 entries for 1 mask classes"),
        ({"mask_values": [1, 1]}, "mask_values has an entry twice"),
        ({"mask_values": [1], "colors": [[0, 0, 0]]}, "exclude each other"),
        ({"colors": [[0, 0, 300]]}, "each from 0 to 255"),
        ({"image": "images"}, "image"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make("masks", "nowhere", root=".", **options)
