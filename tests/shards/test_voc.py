"""The recipe voc: lists become splits, boxes are 0-based, masks are gray, and hostile XML is refused."""

import io
import json
import re
import shutil
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


def xml_object(name: str, *corners: object, more: str = "") -> str:
    sides = "".join(f"<{side}>{v}</{side}>" for side, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{sides}</bndbox></object>"


def xml(*objects: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> str:
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{''.join(objects)}</annotation>"


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
    """A VOC folder with image a in train and b in val."""
    root = tmp_path / "VOC2012"
    (root / "JPEGImages").mkdir(parents=True)
    for number, (name, split) in enumerate((("a", "train"), ("b", "val"))):
        pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"JPEGImages/{name}.jpg")
        write(root / f"Annotations/{name}.xml", xml(xml_object("dog", 2, 3, 5, 6)))
        for lists in ("Main", "Segmentation"):
            write(root / f"ImageSets/{lists}/{split}.txt", f"{name}\n")
    return root


def make_shards(root: Path, **options: Any) -> dict[str, bytes]:
    """Make valid shards; returns name -> bytes of everything in them."""
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


def test_the_lists_are_the_splits_and_image_files_are_stored_unchanged(root: Path) -> None:
    found = make_shards(root)
    assert sorted(found) == ["train/a.jpg", "train/a.json", "val/b.jpg", "val/b.json"]
    assert found["train/a.jpg"] == (root / "JPEGImages/a.jpg").read_bytes()


def test_boxes_become_0_based_and_exclusive(root: Path) -> None:
    parts = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    write(
        root / "Annotations/a.xml", xml(xml_object("person", 1, 1, 8, 6, more=parts), xml_object("cat", 3.5, 2, 3.5, 2))
    )
    annotation = json.loads(make_shards(root)["train/a.json"])
    assert annotation == {"width": 8, "height": 6, "boxes": [[0, 0, 8, 6, 14], [2.5, 1, 3.5, 2, 7]], "labels": [7, 14]}


def test_boxes_are_clipped_to_the_image(root: Path) -> None:
    write(root / "Annotations/a.xml", xml(xml_object("dog", 0, 0, 4, 9)))
    assert json.loads(make_shards(root)["train/a.json"])["boxes"] == [[0, 0, 4, 6, 11]]


def test_a_palette_mask_becomes_gray_with_the_same_values(root: Path) -> None:
    mask = np.array([[0, 20, 255, 12]], np.uint8).repeat(2, 1).repeat(HEIGHT, 0)
    palette(root / "SegmentationClass/a.png", mask)
    found = make_shards(root)
    stored = Image.open(io.BytesIO(found["train/a.mask.png"]))
    assert stored.mode == "L" and np.array_equal(np.asarray(stored), mask)
    assert "val/b.mask.png" not in found
    card = json.loads((root.with_name("out") / "dataset.json").read_text())
    assert card["mask_classes"] == ["background", *card["classes"]] and card["classes"][19] == "tvmonitor"


def test_the_lists_of_segmentation_need_masks_but_no_boxes(root: Path) -> None:
    (root / "Annotations/a.xml").unlink()
    palette(root / "SegmentationClass/a.png", np.ones((HEIGHT, WIDTH), np.uint8))
    with pytest.raises(DataError, match=r"ImageSets/Segmentation/val.txt: 'b' has no file in .*SegmentationClass"):
        make_shards(root, lists="Segmentation")
    palette(root / "SegmentationClass/b.png", np.ones((HEIGHT, WIDTH), np.uint8))
    assert sorted(make_shards(root, lists="Segmentation")) == [
        "train/a.jpg",
        "train/a.mask.png",
        "val/b.jpg",
        "val/b.json",
        "val/b.mask.png",
    ]


def test_only_test_images_may_lack_annotations(root: Path) -> None:
    (root / "Annotations/b.xml").unlink()
    with pytest.raises(DataError, match=r"ImageSets/Main/val.txt: 'b' has no file in .*Annotations"):
        make_shards(root)
    (root / "ImageSets/Main/val.txt").rename(root / "ImageSets/Main/test.txt")
    assert [name for name in make_shards(root) if name.startswith("test/")] == ["test/b.jpg"]


def test_a_class_that_is_not_among_those_given_is_named(root: Path) -> None:
    write(root / "Annotations/a.xml", xml(xml_object("dgo", 2, 3, 5, 6)))
    with pytest.raises(DataError, match="a.xml: unknown class 'dgo'; did you mean 'dog'"):
        make_shards(root, classes=["cat", "dog"])


def test_other_classes_can_be_given(root: Path) -> None:
    write(root / "Annotations/a.xml", xml(xml_object("helmet", 2, 3, 5, 6)))
    found = make_shards(root, classes=["dog", "helmet"])
    assert json.loads(found["train/a.json"])["labels"] == [1] and json.loads(found["val/b.json"])["labels"] == [0]


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>' + xml(xml_object("&b;", 1, 1, 2, 2))
OUTSIDE = '<!DOCTYPE x SYSTEM "file:///etc/hostname">' + xml(xml_object("dog", 1, 1, 2, 2))
INVALID = {
    "entities": (BOMB, "has a DOCTYPE"),
    "entities in UTF-16": (BOMB.encode("utf-16"), "has a DOCTYPE"),
    "an external file": (OUTSIDE, "has a DOCTYPE"),
    "truncated": (xml(xml_object("dog", 1, 1, 2, 2))[:-9], "not valid XML"),
    "unknown encoding": ('<?xml version="1.0" encoding="nobody"?>' + xml(), "not valid XML"),
    "empty": ("", "not valid XML"),
    "box reversed": (xml(xml_object("dog", 5, 1, 2, 2)), "reversed box"),
    "box outside": (xml(xml_object("dog", 10, 1, 12, 2)), "outside its image of 8x6"),
    "box NaN": (xml(xml_object("dog", "nan", 1, 2, 2)), "'nan' instead of a number"),
    "box missing": (xml("<object><name>dog</name></object>"), "None instead of a number"),
    "image of another size": (xml(size=(6, 8)), "is for 6x8 pixels, but its image has 8x6"),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_annotation_is_named_in_one_line_and_nothing_is_left_behind(root: Path, name: str) -> None:
    content, message = INVALID[name]
    (root / "Annotations/a.xml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(
        DataError, match=re.escape(str(root / "Annotations/a.xml")) + ": .*" + re.escape(message)
    ) as error:
        make_shards(root)
    assert "\n" not in str(error.value)
    assert [path.name for path in root.parent.iterdir()] == ["VOC2012"]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((HEIGHT, WIDTH), 21, np.uint8), "a.jpg: its mask has class 21; possible: 0 to 20"),
        (np.zeros((WIDTH, HEIGHT), np.uint8), "a.jpg: its mask is "),
        (
            np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3),
            r"SegmentationClass/a.png: uint8 \[6, 8, 3\] with colors; save masks as 8-bit gray",
        ),
    ],
    ids=["unknown class", "another size", "colors"],
)
def test_an_invalid_mask_is_named(root: Path, mask: np.ndarray, message: str) -> None:
    (root / "SegmentationClass").mkdir()
    Image.fromarray(mask).save(root / "SegmentationClass/a.png")
    with pytest.raises(DataError, match=message):
        make_shards(root)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("none", r"Main/train.txt: 'none': the file .*JPEGImages/none.jpg does not exist"),
        ("../../secret", r"Main/train.txt: '../../secret': '../../secret' is outside"),
        ("a\na", "a.jpg: its key would be 'a', which .*a.jpg has; list it once"),
    ],
)
def test_a_listed_name_that_is_not_an_image_or_is_repeated_is_refused(root: Path, line: str, message: str) -> None:
    write(root / "ImageSets/Main/train.txt", line)
    with pytest.raises(DataError, match=message):
        make_shards(root)


def test_a_damaged_image_is_named(root: Path) -> None:
    write(root / "JPEGImages/a.jpg", "no picture")
    with pytest.raises(DataError, match="JPEGImages/a.jpg: not a JPEG, PNG or WebP file"):
        make_shards(root)


def test_a_folder_of_another_format_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError,
        match=r"no train.txt, val.txt or test.txt in .*ImageSets/Main, and no XML .* give the folder of one year",
    ):
        make_shards(tmp_path / "empty")
    for split in ("train", "val"):
        write(root / f"ImageSets/Main/{split}.txt", "\n")
    with pytest.raises(DataError, match="ImageSets/Main: all lists are empty"):
        make_shards(root)


def test_the_folder_around_one_year_is_enough_and_two_are_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "kit/VOC2012")
    assert sorted(make_shards(tmp_path / "kit")) == ["train/a.jpg", "train/a.json", "val/b.jpg", "val/b.json"]
    shutil.copytree(root, tmp_path / "kit/VOC2007")
    with pytest.raises(DataError, match="has VOC2007 and VOC2012; give the folder of one year"):
        make_shards(tmp_path / "kit")


@pytest.mark.parametrize("place", ["JPEGImages", "train", "valid"])
def test_without_lists_all_images_with_an_xml_are_samples(root: Path, tmp_path: Path, place: str) -> None:
    shutil.rmtree(root / "ImageSets")
    if place != "JPEGImages":  # as Roboflow exports
        for path in [*root.glob("JPEGImages/*"), *root.glob("Annotations/*")]:
            (root / place).mkdir(exist_ok=True)
            path.rename(root / place / path.name)
    splits = {"JPEGImages": ["test", "train"], "train": ["train"], "valid": ["val"]}[place]
    assert sorted({name.partition("/")[0] for name in make_shards(root)}) == splits


@pytest.mark.parametrize("line", ["my photo", "my photo.JPG", "MY PHOTO.jpg", "JPEGImages/my photo.JPG", "my photo  "])
def test_listed_names_are_found_as_tools_write_them(root: Path, line: str) -> None:
    (root / "JPEGImages/a.jpg").rename(root / "JPEGImages/my photo.JPG")
    (root / "Annotations/a.xml").rename(root / "Annotations/my photo.xml")
    (root / "ImageSets/Main/train.txt").write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n")
    assert len([name for name in make_shards(root) if name.startswith("train/") and name.endswith(".json")]) == 1


@pytest.mark.parametrize("encoding", ["GBK", "gb2312", "big5", "shift_jis", "windows-1251", "iso-8859-1", "utf-16"])
def test_declared_encodings_are_read(root: Path, encoding: str) -> None:
    name = {"windows-1251": "собака", "iso-8859-1": "ünï", "shift_jis": "犬"}.get(encoding, "狗")
    text = f'<?xml version="1.0" encoding="{encoding}"?>' + xml(xml_object(name, 1, 1, 4, 4))
    for file in ("a", "b"):
        (root / f"Annotations/{file}.xml").write_bytes(text.encode(encoding))
    make_shards(root)
    assert json.loads((root.with_name("out") / "dataset.json").read_text(encoding="utf-8"))["classes"] == [name]


@pytest.mark.parametrize("size", [(0, 0), (0, HEIGHT)])
def test_a_size_of_zero_is_not_a_size(root: Path, size: tuple[int, int]) -> None:
    write(root / "Annotations/a.xml", xml(xml_object("dog", 2, 3, 5, 6), size=size))
    assert json.loads(make_shards(root)["train/a.json"])["boxes"] == [[1, 2, 5, 6, 11]]


def test_other_classes_are_collected_unless_masks_need_their_order(root: Path, tmp_path: Path) -> None:
    write(root / "Annotations/a.xml", xml(xml_object("Battery", 2, 3, 5, 6)))
    assert json.loads(make_shards(root)["train/a.json"])["labels"] == [0]
    shutil.rmtree(tmp_path / "out")
    palette(root / "SegmentationClass/a.png", np.ones((HEIGHT, WIDTH), np.uint8))
    with pytest.raises(
        DataError, match="the class 'Battery', which is not one of VOC's, and it has masks; give classes="
    ):
        make_shards(root)
    write(tmp_path / "names.txt", "\ufeffdog\nBattery\n")
    assert json.loads(make_shards(root, classes=str(tmp_path / "names.txt"))["train/a.json"])["labels"] == [1]


def test_other_lists_are_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match="lists=Layout: possible: Main, Segmentation"):
        make_shards(root, lists="Layout")
