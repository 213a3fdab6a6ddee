"""The recipe coco with root=: files of instances, their images and captions become the splits of one data set."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.made_shards import drawn, made, picture

from mtgen.data.dataset_card import read_card
from mtgen.errors import ConfigError, DataError
from mtgen.shards.listing import Listing
from mtgen.shards.make import make
from mtgen.shards.recipe import RECIPES


def instances(path: Path, names: list[str], categories: dict[int, str], *objects: tuple[int, int, list[float]]) -> None:
    """A file of instances; objects are the number of an image, a category, and left, top, width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": i, "file_name": name, "width": 16, "height": 12} for i, name in enumerate(names)]
    annotations = []
    for number, (image, category, (x, y, w, h)) in enumerate(objects):
        corners = [x, y, x + w, y, x + w, y + h, x, y + h]
        item = {"id": number, "image_id": image, "category_id": category, "bbox": [x, y, w, h], "iscrowd": 0}
        annotations.append(item | {"area": w * h, "segmentation": [corners]})
    listed = [{"id": number, "name": name, "supercategory": "x"} for number, name in categories.items()]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": listed}
    path.write_text(json.dumps(content))


def test_coco_2017(tmp_path: Path) -> None:
    """annotations/instances_SPLIT2017.json and captions_SPLIT2017.json, images in SPLIT2017; others are left alone."""
    root = tmp_path / "coco"
    for i, split in enumerate(("train2017", "val2017")):
        picture(root / split / "000000000009.jpg", i)
        categories = {1: "person", 18: "dog"}
        instances(root / f"annotations/instances_{split}.json", ["000000000009.jpg"], categories, (0, 18, [1, 2, 5, 6]))
        captions: dict[str, Any] = {
            "images": [],
            "annotations": [{"image_id": 0, "id": 1, "caption": f"a dog of {split} "}],
        }
        (root / f"annotations/captions_{split}.json").write_text(json.dumps(captions))
        (root / f"annotations/person_keypoints_{split}.json").write_text("{}")
    train, val = made("coco", tmp_path / "out", root=str(root))
    assert (train["split"], val["split"]) == ("train", "val")
    assert train["boxes"] == [("dog", 1, 2, 6, 8)] and drawn(val["mask"], "dog").sum() == 30
    assert (train["caption"], val["caption"]) == (b"a dog of train2017", b"a dog of val2017")
    (proposal,) = RECIPES["coco"].detect(Listing.of(root))
    assert proposal.options == {"root": str(root)}


def test_roboflows_export_and_categories_that_differ_between_files(tmp_path: Path) -> None:
    """SPLIT/_annotations.coco.json beside the images of the split; categories are united by their names."""
    picture(tmp_path / "in/train/a_jpg.rf.0.jpg", 0)
    picture(tmp_path / "in/valid/b_jpg.rf.1.jpg", 1)
    train, valid = (tmp_path / f"in/{split}/_annotations.coco.json" for split in ("train", "valid"))
    instances(train, ["a_jpg.rf.0.jpg"], {1: "cat", 2: "dog"}, (0, 2, [1, 2, 5, 6]))
    instances(valid, ["b_jpg.rf.1.jpg"], {1: "dog", 2: "bird"}, (0, 1, [0, 0, 2, 2]), (0, 2, [4, 4, 4, 4]))
    first, second = made("coco", tmp_path / "out", root=str(tmp_path / "in"))
    assert read_card(tmp_path / "out").classes == ["cat", "dog", "bird"]
    assert first["labels"] == ["dog"] and drawn(first["mask"], "dog").sum() == 30
    assert second["boxes"] == [("bird", 4, 4, 8, 8), ("dog", 0, 0, 2, 2)] and second["labels"] == ["bird", "dog"]
    assert drawn(second["mask"], "bird").sum() == 16 and drawn(second["mask"], "dog").sum() == 4


def test_one_file_without_a_split_beside_a_folder_of_images(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(10)]
    for i, name in enumerate(names):
        picture(tmp_path / "in/images" / name, i)
    instances(tmp_path / "in/result.json", names, {0: "cat"}, (3, 0, [1, 2, 5, 6]))
    splits = [item["split"] for item in made("coco", tmp_path / "out", root=str(tmp_path / "in"))]
    assert sorted(splits) == ["test"] + ["train"] * 9


def test_two_files_of_the_same_images_are_refused_and_proposed_one_at_a_time(tmp_path: Path) -> None:
    picture(tmp_path / "in/a.jpg")
    for name in ("first.json", "second.json"):
        instances(tmp_path / "in" / name, ["a.jpg"], {0: "cat"}, (0, 0, [1, 2, 5, 6]))
    with pytest.raises(DataError, match="first.json and second.json both list a.jpg; give images= and instances="):
        make("coco", tmp_path / "out", root=str(tmp_path / "in"))
    proposals = RECIPES["coco"].detect(Listing.of(tmp_path / "in"))
    assert [Path(proposal.options["instances"]).name for proposal in proposals] == ["first.json", "second.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give root=, the folder of a data set, or images= and instances="),
        ({"images": "x"}, "give root=, the folder of a data set, or images= and instances="),
        ({"root": "x", "instances": "y"}, "root=x finds all files and splits, which excludes instances="),
    ],
)
def test_either_the_folder_or_its_files_are_given(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make("coco", "nowhere", **options)


def test_a_folder_without_instances_or_without_their_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no JSON file of instances in it"):
        make("coco", tmp_path / "out", root=str(tmp_path))
    instances(tmp_path / "in/instances_train.json", ["a.jpg"], {0: "cat"})
    with pytest.raises(DataError, match="instances_train.json: its first image 'a.jpg' is not in"):
        make("coco", tmp_path / "out", root=str(tmp_path / "in"))
