"""The recipe labelme: shapes as labelme and X-AnyLabeling write them, and clear errors."""

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.made_shards import drawn, made, picture
from PIL import Image

from mtgen.data.dataset_card import read_card
from mtgen.errors import DataError
from mtgen.shards.listing import Listing
from mtgen.shards.make import make
from mtgen.shards.recipe import RECIPES
from mtgen.shards.recipes.labelme import LabelmeOptions

SQUARE = [[2, 2], [8, 2], [8, 8], [2, 8]]


def shape(label: str, points: list[list[float]], kind: str = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}} | more


def annotate(path: Path, *shapes: dict[str, Any], **more: Any) -> Path:
    """An image and its JSON file."""
    picture(path.with_suffix(".jpg"), seed=zlib.crc32(path.name.encode()))
    content = {"version": "5.4.1", "flags": {}, "shapes": list(shapes), "imagePath": path.with_suffix(".jpg").name}
    path.write_text(json.dumps(content | {"imageData": None, "imageHeight": 12, "imageWidth": 16} | more))
    return path


def test_shapes_become_boxes_labels_and_masks(tmp_path: Path) -> None:
    mask = io.BytesIO()
    Image.fromarray(np.full((2, 3), 255, np.uint8)).save(mask, "PNG")
    annotate(
        tmp_path / "in/a.json",
        shape("cat", SQUARE),
        shape("dog", [[15, 9], [9, 11]], "rectangle"),  # from the lower right to the upper left corner
        shape("bird", [[12, 3], [14, 3]], "circle"),
        shape("fish", [[0, 9], [3, 11]], "mask", mask=base64.b64encode(mask.getvalue()).decode()),
        shape("tail", [[1, 1], [2, 2]], "line"),
        shape("__ignore__", SQUARE),
    )
    (found,) = made("labelme", tmp_path / "out", root=str(tmp_path / "in"), test=0)
    assert [box[0] for box in found["boxes"]] == ["bird", "cat", "dog", "fish"]
    assert ("cat", 2, 2, 8, 8) in found["boxes"] and ("dog", 9, 9, 15, 11) in found["boxes"]
    assert ("fish", 0, 9, 3, 11) in found["boxes"] and found["labels"] == ["bird", "cat", "dog", "fish", "tail"]
    assert drawn(found["mask"], "cat")[2:8, 2:8].all() and drawn(found["mask"], "fish").sum() == 6
    assert 10 <= drawn(found["mask"], "bird").sum() <= 16  # a circle of radius 2
    assert drawn(found["mask"], "?")[9:11, 9:15].all()  # nobody said what in its box is the dog


def test_shapes_of_one_group_are_parts_of_one_object(tmp_path: Path) -> None:
    parts = [[[0, 0], [2, 0], [2, 2], [0, 2]], [[6, 6], [8, 6], [8, 8], [6, 8]]]
    annotate(tmp_path / "in/a.json", *(shape("cat", part, group_id=1) for part in parts))
    (found,) = made("labelme", tmp_path / "out", root=str(tmp_path / "in"), test=0)
    assert found["boxes"] == [("cat", 0, 0, 8, 8)] and drawn(found["mask"], "cat").sum() == 8


def test_split_folders_and_the_order_of_labels_txt(tmp_path: Path) -> None:
    for name, label in (("Train/a", "dog"), ("Train/b", "cat"), ("valid/c", "cat")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        annotate(tmp_path / "in" / f"{name}.json", shape(label, SQUARE, "rectangle"))
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\ndog\ncat\n")
    options = {"root": str(tmp_path / "in"), "classes": str(tmp_path / "labels.txt")}
    found = made("labelme", tmp_path / "out", **options)
    assert [item["split"] for item in found] == ["train", "train", "val"] and "mask" not in found[0]
    assert read_card(tmp_path / "out").classes == ["dog", "cat"]


def test_without_shapes_flags_are_classes(tmp_path: Path) -> None:
    annotate(tmp_path / "in/a.json", flags={"__ignore__": False, "cat": True, "dog": False})
    annotate(tmp_path / "in/abc.json", flags={"cat": True, "dog": True})
    first, second = made("labelme", tmp_path / "out", root=str(tmp_path / "in"), test=0)
    assert first == {"split": "train", "class": "cat"} and second["labels"] == ["cat", "dog"]


def test_a_missing_image_is_taken_from_the_json_or_found_by_its_name(tmp_path: Path) -> None:
    inside = annotate(tmp_path / "in/a.json", shape("cat", SQUARE))
    data = base64.b64encode(inside.with_suffix(".jpg").read_bytes()).decode()
    annotate(inside, shape("cat", SQUARE), imageData=data).with_suffix(".jpg").unlink()
    annotate(tmp_path / "in/other.json", shape("cat", SQUARE), imagePath="..\\images\\other.jpg")
    annotate(tmp_path / "in/third.json", shape("cat", SQUARE), imagePath="gone.png")
    assert len(made("labelme", tmp_path / "out", root=str(tmp_path / "in"), test=0)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imageWidth": 12, "imageHeight": 16}, "a.json: is for 12x16 pixels, but its image has 16x12"),
        ({"shapes": [shape("cat", [[1, 2, 3]])]}, "a.json: shapes.0.points.0"),
        ({"shapes": [shape("cat", SQUARE, "cuboid")]}, "a cuboid of 4 points; use polygons"),
        ({"shapes": [shape("cat", [[0, 0], [2, 2]], "mask", mask="?")]}, "not a PNG in base64"),
    ],
)
def test_a_wrong_file_is_named_with_its_remedy(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "in").mkdir()
    annotate(tmp_path / "in/a.json", shape("cat", SQUARE), **changes)
    with pytest.raises(DataError, match=message):
        make("labelme", tmp_path / "out", root=str(tmp_path / "in"))


def test_an_image_that_is_nowhere_is_named(tmp_path: Path) -> None:
    annotate(tmp_path / "a.json", shape("cat", SQUARE)).with_suffix(".jpg").unlink()
    with pytest.raises(DataError, match=r"a.json: its image 'a.jpg' does not exist"):
        make("labelme", tmp_path / "out", root=str(tmp_path))


def test_files_that_are_not_used_are_counted_and_it_proposes_itself(tmp_path: Path) -> None:
    annotate(tmp_path / "a.json", shape("cat", SQUARE))
    (tmp_path / "settings.json").write_text("{}")
    picture(tmp_path / "b.jpg")
    maker = RECIPES["labelme"](LabelmeOptions(root=str(tmp_path)), 0)
    assert maker.left_alone.lines() == [
        "1 JSON files that are not labelme's (settings.json)",
        "1 images without a JSON file of labelme (b.jpg)",
    ]
    (proposal,) = RECIPES["labelme"].detect(Listing.of(tmp_path))
    assert proposal.options == {"root": str(tmp_path)}
