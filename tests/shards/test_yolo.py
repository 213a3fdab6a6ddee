"""The recipe yolo: data.yaml in all its variants, Darknet's lists, boxes and polygons, and clear errors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.made_shards import drawn, made, picture

from mtgen.data.dataset_card import read_card
from mtgen.errors import DataError
from mtgen.shards.listing import Listing
from mtgen.shards.make import make
from mtgen.shards.recipe import RECIPES
from mtgen.shards.recipes.yolo import YoloOptions, label_path

BOX = "0 0.5 0.5 0.25 0.5\n"  # x 6 to 10, y 3 to 9 of 16x12
POLYGON = "1 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n"  # x 4 to 12, y 3 to 9


def put(image: Path, labels: str | None = BOX, seed: int = 0) -> Path:
    """An image, and its label file as Ultralytics finds it."""
    picture(image, seed)
    if labels is not None:
        label_path(image).parent.mkdir(parents=True, exist_ok=True)
        label_path(image).write_text(labels)
    return image


def described(root: Path, text: str) -> dict[str, Any]:
    (root / "data.yaml").write_text(text, encoding="utf-8")
    return {"data": str(root / "data.yaml")}


def test_coco8_as_ultralytics_ships_it(tmp_path: Path) -> None:
    """images/SPLIT and labels/SPLIT; names are a mapping; an image without a text file has no objects."""
    root = tmp_path / "coco8"
    for i, split in enumerate(("train", "train", "val")):
        put(root / f"images/{split}/{i:012d}.jpg", BOX if i != 1 else None, i)
    text = "path: coco8 # dataset root dir\ntrain: images/train\nval: images/val\ntest: # optional\n"
    options = described(root, text + "names:\n  0: person\n  1: traffic light\ndownload: https://nowhere/coco8.zip\n")
    first, empty, last = made("yolo", tmp_path / "out", **options)
    assert first["boxes"] == [("person", 6, 3, 10, 9)] and first["labels"] == ["person"]
    assert empty["boxes"] == [] and (first["split"], last["split"]) == ("train", "val")
    assert "mask" not in first and read_card(tmp_path / "out").classes == ["person", "traffic light"]
    maker = RECIPES["yolo"](YoloOptions(**options), 0)
    assert maker.notices == ["1 images without a text file of labels have no objects"]


@pytest.mark.parametrize("test", ["../test/images", "test/images"])
def test_roboflows_export_names_folders_from_within_and_a_test_split_that_is_not_there(
    tmp_path: Path, test: str
) -> None:
    for i, split in enumerate(("train", "valid")):
        put(tmp_path / f"in/{split}/images/a_jpg.rf.{i}.jpg", POLYGON, i)
    text = f"train: ../train/images\nval: ../valid/images\ntest: {test}\n\nnc: 2\nnames: ['no', \"don't know\"]\n"
    options = described(tmp_path / "in", text + "roboflow:\n  workspace: x\n  license: CC BY 4.0\n")
    train, val = made("yolo", tmp_path / "out", **options)
    assert (train["split"], val["split"]) == ("train", "val")
    assert train["boxes"] == [("don't know", 4, 3, 12, 9)]
    expected = np.zeros((12, 16), bool)
    expected[3:9, 4:12] = True
    assert np.array_equal(drawn(train["mask"], "don't know"), expected)
    assert np.array_equal(drawn(train["mask"], "background"), ~expected)
    assert read_card(tmp_path / "out").classes == ["no", "don't know"]
    assert any("there is no split test" in line for line in RECIPES["yolo"](YoloOptions(**options), 0).notices)


def test_lists_of_images_begin_beside_the_list_or_at_the_root_or_on_another_system(tmp_path: Path) -> None:
    for i in range(4):
        put(tmp_path / f"in/images/{i}.png", seed=i)
    (tmp_path / "in/lists").mkdir()
    (tmp_path / "in/lists/train.txt").write_text("../images/0.png\nimages/1.png\nD:\\data\\in\\images\\2.png\n")
    (tmp_path / "in/val.txt").write_text("./images/3.png\n/images/gone.png\n")
    options = described(tmp_path / "in", "train: lists/train.txt\nval: [val.txt]\nnames: [a, b]\n")
    maker = RECIPES["yolo"](YoloOptions(**options), 0)
    assert maker.splits == {"train": 3, "val": 1}
    assert len(maker.faults) == 1 and "val.txt: line 2" in maker.faults[0] and "gone.png" in maker.faults[0]


def test_darknets_data_file_with_lists_from_a_folder_data(tmp_path: Path) -> None:
    """As Yolo_mark and CVAT's "YOLO 1.1" write it: labels are beside the images."""
    put(tmp_path / "obj_train_data/frame 1.jpg")
    (tmp_path / "obj.data").write_text(
        "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
    )
    (tmp_path / "obj.names").write_text("cat\ndog\n")
    (tmp_path / "train.txt").write_text("data/obj_train_data/frame 1.jpg\n")
    (found,) = made("yolo", tmp_path / "out", data=str(tmp_path))
    assert found["boxes"] == [("cat", 6, 3, 10, 9)]


def test_label_studios_folder_has_classes_txt_and_no_splits(tmp_path: Path) -> None:
    for i in range(10):
        put(tmp_path / f"in/images/{i}.jpg", seed=i)
    (tmp_path / "in/classes.txt").write_text("\ufeffcat\ndog\n", encoding="utf-8")
    (tmp_path / "in/labels/stray.txt").write_text(BOX)
    assert {item["split"] for item in made("yolo", tmp_path / "out", data=str(tmp_path / "in"))} == {"train", "test"}
    assert read_card(tmp_path / "out").classes == ["cat", "dog"]
    maker = RECIPES["yolo"](YoloOptions(data=str(tmp_path / "in")), 0)
    assert maker.left_alone.lines() == ["1 text files without an image (stray.txt)"]


def test_an_image_of_several_splits_is_in_train_as_those_of_coco128(tmp_path: Path) -> None:
    for i in range(10):
        put(tmp_path / f"in/images/train2017/{i}.jpg", seed=i)
    options = described(tmp_path / "in", "train: images/train2017\nval: images/train2017\nnames: {0: a}\n")
    assert [item["split"] for item in made("yolo", tmp_path / "out", **options)] == ["train"] * 9 + ["test"]


def test_keypoints_are_left_out_and_equal_lines_count_once(tmp_path: Path) -> None:
    put(tmp_path / "in/images/0.jpg", "0 0.5 0.5 0.25 0.5 0.1 0.1 2 0.2 0.2 1\n" * 2)
    options = described(tmp_path / "in", "train: images\nkpt_shape: [2, 3]\nnames: [person]\n")
    (found,) = made("yolo", tmp_path / "out", **options)
    assert found["boxes"] == [("person", 6, 3, 10, 9)] and "mask" not in found


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("2 0.5 0.5 0.2 0.2", r"0.txt: line 1: class 2; data.yaml names the classes 0 to 1"),
        ("0 0.5 0.5 0.2", "line 1: 4 numbers; a box has 5"),
        ("0 0.5 0.5 0.2 0.2 0.93", "6 numbers.*remove confidences"),
        ("0 8 6 4 6", "fractions of the image's sides"),
        ("0 0.5 0.5 nan 0.2", "fractions of the image's sides"),
        ("cat 0.5 0.5 0.2 0.2", "'cat 0.5 0.5 0.2 0.2' is not a list of numbers"),
    ],
)
def test_a_wrong_line_is_named_with_its_remedy(tmp_path: Path, labels: str, message: str) -> None:
    put(tmp_path / "in/images/0.jpg", labels)
    with pytest.raises(DataError, match=message):
        make("yolo", tmp_path / "out", **described(tmp_path / "in", "train: images\nnames: [a, b]\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images\n", "has no 'names'"),
        ("train: images\nnames: [a]\nnc: 3\n", "nc is 3, but names has 1 classes"),
        ("train: images\nnames: {1: a, 2: b}\n", "number the classes 0 to 1"),
        ("train: images\nnames: [a, a]\n", "names has 'a' twice"),
        ("train: nowhere\nnames: [a]\n", "train: 'nowhere' does not exist"),
        ("val: ../images2\ntrain: images\nnames: [a]\n", "val: '../images2' does not exist"),
        ("names: [a]\n", "names no images"),
        ("names: [a\n", "not valid YAML"),
    ],
)
def test_a_wrong_data_yaml_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    put(tmp_path / "in/images/0.jpg")
    with pytest.raises(DataError, match=message):
        make("yolo", tmp_path / "out", **described(tmp_path / "in", text))


def test_images_without_any_labels_are_an_error_that_says_where_they_would_be(tmp_path: Path) -> None:
    put(tmp_path / "in/images/0.jpg", None)
    with pytest.raises(DataError, match=r"the one of .*images/0.jpg would be .*labels/0.txt"):
        make("yolo", tmp_path / "out", **described(tmp_path / "in", "train: images\nnames: [a]\n"))


def test_it_proposes_itself_for_a_folder_with_a_data_yaml(tmp_path: Path) -> None:
    put(tmp_path / "images/0.jpg")
    described(tmp_path, "train: images\nnames: [a, b]\n")
    (proposal,) = RECIPES["yolo"].detect(Listing.of(tmp_path))
    assert proposal.options == {"data": str(tmp_path)} and "2 classes, train" in proposal.reason
    (tmp_path / "data.yaml").write_text("learning_rate: 0.1\n")
    (proposal,) = RECIPES["yolo"].detect(Listing.of(tmp_path))
    assert "without names: first write these into classes.txt" in proposal.reason
    for path in tmp_path.rglob("*.txt"):
        path.unlink()
    assert RECIPES["yolo"].detect(Listing.of(tmp_path)) == []


@pytest.mark.parametrize("layout", ["images/{split}/0.jpg", "{split}/images/0.jpg", "{split}/0.jpg"])
def test_split_folders_beside_classes_txt_are_splits(tmp_path: Path, layout: str) -> None:
    for split in ("Train", "valid"):
        put(tmp_path / "in" / layout.format(split=split))
    (tmp_path / "in/classes.txt").write_text("cat\ndog\n")
    card = make("yolo", tmp_path / "out", data=str(tmp_path / "in"))
    assert {name: split.samples for name, split in card.splits.items()} == {"train": 1, "val": 1}
