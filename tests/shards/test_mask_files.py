"""Masks: found by their names beside images and in folders, and never with a meaning that their values do not have."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mtgen.errors import DataError
from mtgen.shards.input_files import read_mask
from mtgen.shards.mask_files import image_stems, mask_classes, pair_by_names
from mtgen.shards.mask_folders import mask_folders

SQUARE = np.zeros((6, 8), np.uint8)
SQUARE[1:4, 2:6] = 1


def saved(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


@given(
    stem=st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12),
    word=st.sampled_from(
        ["mask", "Mask", "masks", "seg", "SEG", "label", "labels", "gt", "segmentation", "annotation", "matte"]
    ),
    between=st.sampled_from(["_", "-", ".", " "]),
)
def test_the_usual_names_of_masks_are_known(stem: str, word: str, between: str) -> None:
    assert stem in [found.rstrip(between) or stem for found in image_stems(f"{stem}{between}{word}")] or stem.endswith(
        ("_", "-", ".", " ")
    )
    assert stem in image_stems(f"{word}{between}{stem}") or stem.startswith(("_", "-", ".", " "))


@given(st.sampled_from(["cat", "masked", "unmask", "gtx", "segway", "labelle", "img_0", "mask", "x_masking"]))
def test_other_names_are_not_those_of_masks(stem: str) -> None:
    assert image_stems(stem) == []


@pytest.mark.parametrize(
    "names",
    [("x.jpg", "x_mask.png"), ("x.jpg", "X_Mask.PNG"), ("x.jpg", "x-seg.gif"), ("x_image.png", "x_label.png"),
     ("x_img.jpg", "x_gt.bmp"), ("x.jpg", "mask_x.tif"), ("x.y.jpg", "x.y (mask).png")],
)  # fmt: skip
def test_masks_beside_images_are_paired(names: tuple[str, str]) -> None:
    assert pair_by_names([Path("a", names[0]), Path("a", names[1]), Path("a/z.jpg")]) == {
        Path("a", names[0]): Path("a", names[1])
    }
    assert pair_by_names([Path("a", names[0]), Path("b", names[1])]) == {}


def test_an_image_has_one_mask() -> None:
    with pytest.raises(DataError, match=r"x.jpg: has two masks by their names, x_gt.png and x_mask.png"):
        pair_by_names([Path("x.jpg"), Path("x_gt.png"), Path("x_mask.png")])
    assert len(pair_by_names([Path("x.jpg"), Path("x_gt.png"), Path("x_mask.png")], "_gt")) == 1


@pytest.mark.parametrize(
    "names",
    [("images/1.jpg", "masks/1.png"), ("train/images/1.jpg", "train/masks/1_mask.png"), ("IMG/a/1.jpg", "GT/a/1.png"),
     ("JPEGImages/1.jpg", "SegmentationClass/1.png"), ("train_images/1.jpg", "train_masks/1.png")],
)  # fmt: skip
def test_folders_of_masks_beside_folders_of_images_are_paired(names: tuple[str, str]) -> None:
    image, mask = map(Path, names)
    found = mask_folders([image, mask], Path())
    assert found.pairs == {image: mask}
    assert not {"images", "img", "jpegimages"} & set(str(found.logical[image]).lower().split("/"))


def test_folders_of_masks_that_do_not_fit_are_named() -> None:
    for names in (["images/1.jpg", "masks/m.png"], ["images/1.jpg", "masks/1.png", "cat/1.jpg"]):
        with pytest.raises(DataError, match=r"masks/.*: is in a folder of masks beside one of images, but"):
            mask_folders([Path(name) for name in names], Path())
    assert mask_folders([Path("label/1.jpg"), Path("barcode/1.jpg")], Path()).pairs == {}


VALUES: list[tuple[set[int], list[str], list[str] | str]] = [
    ({0, 1}, [], []),
    ({0, 1, 2, 255}, [], []),
    ({1, 2, 3}, [], []),
    ({0, 255}, [], ["background", "foreground"]),
    ({255}, [], ["background", "foreground"]),
    ({0, 255}, ["polyp"], ["background", "polyp"]),
    ({0, 255}, ["skin", "lesion"], ["skin", "lesion"]),
    ({0, 1, 255}, ["skin", "lesion"], ["skin", "lesion"]),
    ({0, 255}, ["a", "b", "c"], "masks hold 0 and 255 .unknown. alone, but there are 3 mask_classes"),
    ({0}, [], "all other masks are 0 everywhere"),
    ({0, 128, 255}, [], r"hold the values 0, 128, 255, which .* mask_values=\[0,128,255\]"),
    ({0, 200}, [], r"hold the values 0, 200, which .* mask_values=\[0,200\]"),
    ({0, 15}, [], "hold the values 0, 15"),
    (set(range(0, 255, 2)), [], "128 values from 0 to 254, .* resized smoothly or saved as JPEG"),
]


@pytest.mark.parametrize(("values", "names", "expected"), VALUES, ids=[f"{v}-{n}"[:40] for v, n, _ in VALUES])
def test_values_are_classes_only_if_they_look_like_it(
    tmp_path: Path, values: set[int], names: list[str], expected: list[str] | str
) -> None:
    row = np.array(sorted(values), np.uint8)
    paths = [saved(tmp_path / f"{half}.png", part[None]) for half, part in enumerate((row[:1], row))]
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            mask_classes(paths, names, [])
        return
    found = mask_classes(paths, names, [])
    assert found.names == expected
    known = [value for value in sorted(values) if value != 255 or found.table is not None]
    expected_classes = [1 if value == 255 else value for value in known]
    assert [value for value in found.read(paths[1]).ravel() if value != 255] == expected_classes


def test_a_mask_unlike_the_others_is_named(tmp_path: Path) -> None:
    binary = [saved(tmp_path / f"{i}.png", SQUARE * 255) for i in range(3)]
    found = mask_classes(binary, ["skin", "lesion"], [])
    with pytest.raises(DataError, match="has the value 1, while masks of this set hold 0, 255"):
        found.read(saved(tmp_path / "x.png", SQUARE))


def test_values_can_be_listed(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.png", np.array([[0, 128, 255, 7]], np.uint8))
    with pytest.raises(DataError, match="has the value 128, while masks of this set hold 0, 7"):
        mask_classes([path], [], [0, 7]).read(path)
    assert mask_classes([path], [], [7, 0, 128]).read(path).tolist() == [[1, 2, 255, 0]]


FORMS = {
    "gray in RGB": np.stack([SQUARE] * 3, -1),
    "gray in opaque RGBA": np.stack([SQUARE] * 3 + [np.full_like(SQUARE, 255)], -1),
    "16 bits": SQUARE.astype(np.uint16),
    "1 bit": SQUARE.astype(np.bool_),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_gray_is_read_in_any_form(tmp_path: Path, form: str, suffix: str) -> None:
    assert np.array_equal(read_mask(saved(tmp_path / f"x.{suffix}", FORMS[form])), SQUARE)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.stack([SQUARE, SQUARE * 2, SQUARE], -1), "with colors"),
        (np.stack([SQUARE] * 3 + [SQUARE * 255], -1), "with transparency"),
        ((SQUARE * 300.0).astype(np.uint16), "values from 0 to 300"),
    ],
    ids=["colors", "transparency", "16 bits"],
)
def test_colors_and_large_values_are_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=f"{message}.*save masks as 8-bit gray PNG"):
        read_mask(saved(tmp_path / "x.png", values))
