"""The recipe cvat: "CVAT for images 1.1" with all its shapes, and clear errors."""

from pathlib import Path

import numpy as np
import pytest
from helpers.made_shards import drawn, made, picture

from mtgen.data.dataset_card import read_card
from mtgen.errors import DataError
from mtgen.shards.listing import Listing
from mtgen.shards.make import make
from mtgen.shards.recipe import RECIPES
from mtgen.shards.recipes.cvat import CvatOptions

HEAD = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><id>1</id><name>animals</name><labels>
    <label><name>dog</name><color>#ff0000</color><type>any</type><attributes></attributes></label>
    <label><name>cat</name><color>#00ff00</color><type>any</type><attributes></attributes></label>
  </labels></task><dumped>2026-01-01 00:00:00+00:00</dumped></meta>
"""
BOX = '<box label="cat" source="manual" occluded="0" xtl="2.00" ytl="1.00" xbr="8.50" ybr="9.00" z_order="0"></box>'


def annotate(folder: Path, *images: str, name: str = "a.jpg", **more: str) -> dict[str, str]:
    """One image and an XML file; texts in `images` that are not elements of images are the shapes of the first."""
    picture(folder / "images" / name)
    elements = [f'<image id="{i}" name="{name}" width="16" height="12">{text}</image>' for i, text in enumerate(images)]
    given = [text if text.startswith("<image") else element for text, element in zip(images, elements, strict=True)]
    (folder / "annotations.xml").write_text(f"{HEAD}{''.join(given)}</annotations>", encoding="utf-8")
    return {"annotations": str(folder)}


def test_shapes_become_boxes_labels_and_masks(tmp_path: Path) -> None:
    shapes = [
        BOX,
        '<polygon label="dog" points="10,1;14,1;14,5;10,5" z_order="1"></polygon>',
        '<ellipse label="dog" cx="12" cy="9" rx="3" ry="2" z_order="0"></ellipse>',
        '<mask label="dog" rle="1, 2, 3" left="0" top="10" width="3" height="2" z_order="0"></mask>',
        '<points label="cat" points="3,3;4,4" z_order="0"></points>',
        '<polyline label="" points="1,2;3,4"/>',
    ]
    options = annotate(tmp_path / "in", "".join(shapes))
    (found,) = made("cvat", tmp_path / "out", **options, test=0)
    assert ("cat", 2, 1, 8.5, 9) in found["boxes"] and ("dog", 10, 1, 14, 5) in found["boxes"]
    assert ("dog", 9, 7, 15, 11) in found["boxes"] and ("dog", 1, 10, 3, 11) in found["boxes"]
    assert drawn(found["mask"], "dog")[1:5, 10:14].all() and drawn(found["mask"], "dog")[10, 1:3].all()
    assert drawn(found["mask"], "?")[1:9, 2:8].all()  # of a box, the outline is not known
    assert read_card(tmp_path / "out").classes == ["dog", "cat"]  # in the order of the task
    maker = RECIPES["cvat"](CvatOptions(**options), 0)
    assert maker.left_alone.lines() == ["1 shapes without a label (a.jpg)"]


def test_shapes_of_a_higher_z_order_are_in_front_and_rotated_boxes_have_bounds(tmp_path: Path) -> None:
    small = '<polygon label="cat" points="2,2;6,2;6,6;2,6" z_order="0"></polygon>'
    large = '<polygon label="dog" points="0,0;9,0;9,9;0,9" z_order="1"></polygon>'
    rotated = '<box label="cat" xtl="10" ytl="4" xbr="14" ybr="6" rotation="90" z_order="0"></box>'
    (found,) = made("cvat", tmp_path / "out", **annotate(tmp_path / "in", small + large + rotated), test=0)
    assert not drawn(found["mask"], "cat").any() and drawn(found["mask"], "dog").sum() == 81
    assert np.allclose(next(box[1:] for box in found["boxes"] if box[1] > 9), (11, 3, 13, 7))


def test_subsets_are_splits_and_their_folders_are_found(tmp_path: Path) -> None:
    """As a project's export has them: the same name may be in two subsets."""
    for subset in ("Train", "Validation"):
        picture(tmp_path / f"in/images/{subset}/a.jpg", len(subset))
    images = [
        f'<image id="{i}" name="a.jpg" subset="{subset}" task_id="{i}" width="16" height="12">{BOX}</image>'
        for i, subset in enumerate(("Train", "Validation"))
    ]
    found = made("cvat", tmp_path / "out", **annotate(tmp_path / "in", *images, name="unused.jpg"))
    assert [item["split"] for item in found] == ["train", "val"]


def test_a_single_tag_is_the_class_of_its_image(tmp_path: Path) -> None:
    options = annotate(tmp_path / "in", '<tag label="cat" source="manual"></tag>')
    assert made("cvat", tmp_path / "out", **options, test=0) == [{"split": "train", "class": "cat"}]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (BOX.replace("2.00", "nan"), r"annotations.xml: image 'a.jpg': a box whose xtl is 'nan' instead of a number"),
        (BOX.replace("8.50", "1"), "a reversed box"),
        ('<polygon label="cat" points="1,2;3"/>', "points '1,2;3'; they are pairs"),
        ('<mask label="cat" rle="1,2" left="0" top="0" width="3" height="2"/>', "do not add up to 3x2"),
        ('<mask label="cat" rle="0,6" left="14" top="0" width="3" height="2"/>', "outside its image"),
        ('<blob label="cat"/>', "unknown shape 'blob'"),
    ],
)
def test_a_wrong_shape_is_named_with_its_image(tmp_path: Path, shapes: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make("cvat", tmp_path / "out", **annotate(tmp_path / "in", shapes))


def test_another_size_is_an_error(tmp_path: Path) -> None:
    options = annotate(tmp_path / "in", f'<image id="0" name="a.jpg" width="12" height="16">{BOX}</image>')
    with pytest.raises(DataError, match="is for 12x16 pixels, but its image has 16x12"):
        make("cvat", tmp_path / "out", **options)


def test_annotations_of_a_video_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "annotations.xml").write_text(f'{HEAD}<track id="0" label="cat"></track></annotations>')
    with pytest.raises(DataError, match="is of a video .it has tracks.; export the task as 'CVAT for images 1.1'"):
        make("cvat", tmp_path / "out", annotations=str(tmp_path))


def test_missing_and_repeated_images_are_faults(tmp_path: Path) -> None:
    image = '<image id="{}" name="{}" width="16" height="12"></image>'
    images = [image.format(0, "a.jpg"), image.format(1, "b.jpg"), image.format(2, "a.jpg"), image.format(3, "../a.jpg")]
    faults = RECIPES["cvat"](CvatOptions(**annotate(tmp_path / "in", *images)), 0).faults
    assert len(faults) == 3 and "b.jpg does not exist" in faults[0] and "occurs twice" in faults[1]
    assert "image 3: '../a.jpg' is outside" in faults[2]


def test_it_proposes_itself_for_the_folder_and_the_file(tmp_path: Path) -> None:
    annotate(tmp_path, BOX)
    for path in (tmp_path, tmp_path / "annotations.xml"):
        (proposal,) = RECIPES["cvat"].detect(Listing.of(path))
        assert proposal.options == {"annotations": str(tmp_path / "annotations.xml")}
