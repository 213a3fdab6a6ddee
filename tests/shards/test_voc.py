"""A PASCAL VOC folder becomes shards: its lists are the splits, boxes count from 0, masks are gray, and XML cannot do harm."""

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mtgen.errors import ConfigError, DataError
from mtgen.shards.make import make
from mtgen.shards.validate import validate

WIDTH, HEIGHT = 8, 6


def thing(name: str, *corners: object, more: str = "") -> str:
    sides = "".join(f"<{side}>{v}</{side}>" for side, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{sides}</bndbox></object>"


def xml(*things: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> str:
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{''.join(things)}</annotation>"


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def palette(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask, "P")
    image.putpalette([(7 * i) % 256 for i in range(768)])
    image.save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of the format: image a in train, b in val."""
    root = tmp_path / "VOC2012"
    (root / "JPEGImages").mkdir(parents=True)
    for number, (name, split) in enumerate((("a", "train"), ("b", "val"))):
        pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"JPEGImages/{name}.jpg")
        write(root / f"Annotations/{name}.xml", xml(thing("dog", 2, 3, 5, 6)))
        for lists in ("Main", "Segmentation"):
            write(root / f"ImageSets/{lists}/{split}.txt", f"{name}\n")
    return root


def made(root: Path, **options: Any) -> dict[str, bytes]:
    """Name -> bytes of everything in the shards, which `validate` finds nothing wrong with."""
    out = root.with_name("out")
    make("voc", out, root=str(root), **options)
    assert validate(out).problems == []
    found = {}
    for shard in sorted(out.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                found[f"{shard.name.partition('-')[0]}/{member.name}"] = content.read()
    return found


def test_the_lists_are_the_splits_and_image_files_are_stored_as_they_are(root: Path) -> None:
    found = made(root)
    assert sorted(found) == ["train/a.jpg", "train/a.json", "val/b.jpg", "val/b.json"]
    assert found["train/a.jpg"] == (root / "JPEGImages/a.jpg").read_bytes()


def test_boxes_that_count_from_1_with_their_last_pixel_count_from_0_without_it(root: Path) -> None:
    parts = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    write(root / "Annotations/a.xml", xml(thing("person", 1, 1, 8, 6, more=parts), thing("cat", 3.5, 2, 3.5, 2)))
    about = json.loads(made(root)["train/a.json"])
    assert about == {"width": 8, "height": 6, "boxes": [[0, 0, 8, 6, 14], [2.5, 1, 3.5, 2, 7]], "labels": [7, 14]}


def test_a_box_that_counts_from_0_is_cut_at_the_images_edge(root: Path) -> None:
    write(root / "Annotations/a.xml", xml(thing("dog", 0, 0, 4, 9)))
    assert json.loads(made(root)["train/a.json"])["boxes"] == [[0, 0, 4, 6, 11]]


def test_a_palette_mask_becomes_gray_with_its_numbers_kept(root: Path) -> None:
    mask = np.array([[0, 20, 255, 12]], np.uint8).repeat(2, 1).repeat(HEIGHT, 0)
    palette(root / "SegmentationClass/a.png", mask)
    found = made(root)
    stored = Image.open(io.BytesIO(found["train/a.mask.png"]))
    assert stored.mode == "L" and np.array_equal(np.asarray(stored), mask)
    assert "val/b.mask.png" not in found
    card = json.loads((root.with_name("out") / "dataset.json").read_text())
    assert card["mask_classes"] == ["background", *card["classes"]] and card["classes"][19] == "tvmonitor"


def test_the_lists_of_segmentation_ask_for_a_mask_and_not_for_boxes(root: Path) -> None:
    (root / "Annotations/a.xml").unlink()
    palette(root / "SegmentationClass/a.png", np.ones((HEIGHT, WIDTH), np.uint8))
    with pytest.raises(DataError, match=r"ImageSets/Segmentation/val.txt: 'b' has no file in .*SegmentationClass"):
        made(root, lists="Segmentation")
    palette(root / "SegmentationClass/b.png", np.ones((HEIGHT, WIDTH), np.uint8))
    assert sorted(made(root, lists="Segmentation")) == [
        "train/a.jpg",
        "train/a.mask.png",
        "val/b.jpg",
        "val/b.json",
        "val/b.mask.png",
    ]


def test_test_images_may_be_without_annotations_others_not(root: Path) -> None:
    (root / "Annotations/b.xml").unlink()
    with pytest.raises(DataError, match=r"ImageSets/Main/val.txt: 'b' has no file in .*Annotations"):
        made(root)
    (root / "ImageSets/Main/val.txt").rename(root / "ImageSets/Main/test.txt")
    assert [name for name in made(root) if name.startswith("test/")] == ["test/b.jpg"]


def test_other_classes_are_given_by_name(root: Path) -> None:
    write(root / "Annotations/a.xml", xml(thing("helmet", 2, 3, 5, 6)))
    found = made(root, classes=["dog", "helmet"])
    assert json.loads(found["train/a.json"])["labels"] == [1] and json.loads(found["val/b.json"])["labels"] == [0]


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>' + xml(thing("&b;", 1, 1, 2, 2))
OUTSIDE = '<!DOCTYPE x SYSTEM "file:///etc/hostname">' + xml(thing("dog", 1, 1, 2, 2))
WRONG = {
    "entities": (BOMB, "has a DOCTYPE"),
    "entities in UTF-16": (BOMB.encode("utf-16"), "has a DOCTYPE"),
    "a file from outside": (OUTSIDE, "has a DOCTYPE"),
    "cut short": (xml(thing("dog", 1, 1, 2, 2))[:-9], "not readable as XML"),
    "unknown encoding": ('<?xml version="1.0" encoding="nobody"?>' + xml(), "not readable as XML"),
    "empty": ("", "not readable as XML"),
    "class unknown": (xml(thing("dgo", 1, 1, 2, 2)), "class 'dgo' is not among the classes; did you mean 'dog'"),
    "box reversed": (xml(thing("dog", 5, 1, 2, 2)), "reversed box"),
    "box outside": (xml(thing("dog", 10, 1, 12, 2)), "outside its image of 8x6"),
    "box NaN": (xml(thing("dog", "nan", 1, 2, 2)), "'nan' where a number is needed"),
    "box missing": (xml("<object><name>dog</name></object>"), "None where a number is needed"),
    "image of another size": (xml(size=(6, 8)), "is of an image of 6x8, and the image has 8x6"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_annotation_that_cannot_be_used_is_named_in_one_line_and_nothing_is_left(root: Path, name: str) -> None:
    content, message = WRONG[name]
    (root / "Annotations/a.xml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(
        DataError, match=re.escape(str(root / "Annotations/a.xml")) + ": .*" + re.escape(message)
    ) as error:
        made(root)
    assert "\n" not in str(error.value)
    assert [path.name for path in root.parent.iterdir()] == ["VOC2012"]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((HEIGHT, WIDTH), 21, np.uint8), "a.jpg: its mask holds 21, and the data set has 21 mask classes"),
        (np.zeros((WIDTH, HEIGHT), np.uint8), "a.jpg: its mask is "),
        (np.zeros((HEIGHT, WIDTH, 3), np.uint8), r"SegmentationClass/a.png: uint8 \[6, 8, 3\]; a mask has one channel"),
    ],
    ids=["unknown class", "another size", "colors"],
)
def test_a_mask_that_cannot_be_used_is_named(root: Path, mask: np.ndarray, message: str) -> None:
    (root / "SegmentationClass").mkdir()
    Image.fromarray(mask).save(root / "SegmentationClass/a.png")
    with pytest.raises(DataError, match=message):
        made(root)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("none", r"Main/train.txt: 'none': there is no file .*JPEGImages/none.jpg"),
        ("../../secret", r"Main/train.txt: '../../secret': '../../secret.jpg' leads out of"),
        ("a\na", "a.jpg: its key would be 'a', which .*a.jpg has; name it once"),
    ],
)
def test_a_name_in_a_list_that_is_no_image_or_is_there_twice_is_refused(root: Path, line: str, message: str) -> None:
    write(root / "ImageSets/Main/train.txt", line)
    with pytest.raises(DataError, match=message):
        made(root)


def test_a_damaged_image_is_named(root: Path) -> None:
    write(root / "JPEGImages/a.jpg", "no picture")
    with pytest.raises(DataError, match="JPEGImages/a.jpg: not a JPEG, PNG or WebP file"):
        made(root)


def test_a_folder_that_is_not_of_the_format_is_refused(root: Path) -> None:
    with pytest.raises(
        DataError, match=r"no train.txt, val.txt or test.txt in .*ImageSets/Main; give the folder of a year"
    ):
        made(root.parent)
    for split in ("train", "val"):
        write(root / f"ImageSets/Main/{split}.txt", "\n")
    with pytest.raises(DataError, match="ImageSets/Main: its lists are empty"):
        made(root)


def test_there_are_no_more_lists_than_the_formats_own(root: Path) -> None:
    with pytest.raises(ConfigError, match="lists=Layout: possible: Main, Segmentation"):
        made(root, lists="Layout")
