"""Exports, made again into a data set, give the same images, classes, boxes and masks, as far as formats hold them."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.made_shards import contents, pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import ExifTags, Image
from pycocotools.coco import COCO

from mtgen.config import find_entry, parse_options
from mtgen.data.dataset_card import read_card
from mtgen.errors import ConfigError, DataError
from mtgen.shards.coco_masks import polygon
from mtgen.shards.export import EXPORTERS, export
from mtgen.shards.instances import instances
from mtgen.shards.make import make
from mtgen.shards.mask_outlines import joined, outlines, parts
from mtgen.shards.validate import validate
from mtgen.shards.write import Sample, ShardWriter

CLASSES, MASK_CLASSES = ["cat", "dog", "sky"], ["background", "cat", "dog", "sky"]


def objects(*placed: tuple[int, int, int, int, int], hole: bool = False) -> tuple[np.ndarray, list[list[float]]]:
    """A mask of rectangles x0, y0, x1, y1, class, later ones in front, and their boxes."""
    mask = np.zeros((12, 16), np.uint8)
    for x0, y0, x1, y1, label in placed:
        mask[y0:y1, x0:x1] = label + 1
        if hole:
            mask[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] = 0
    return mask, [[*map(float, item)] for item in placed]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Objects side by side, with a hole, in two parts, overlapping, hidden, and none; captions, classes and a sound."""
    samples = []
    for i, (mask, boxes) in enumerate(
        [
            objects((1, 1, 5, 6, 0), (7, 2, 14, 9, 1)),
            objects((2, 2, 9, 10, 2), hole=True),
            objects((1, 1, 14, 10, 0), (5, 1, 8, 10, 1)),  # the dog divides the cat
            objects((3, 3, 6, 6, 0), (6, 3, 9, 6, 0), (2, 2, 12, 10, 1)),  # the dog hides two cats
            objects((1, 1, 5, 5, 0), (5, 5, 9, 9, 0)),  # they touch at a corner
            objects(),
        ]
    ):
        labels = sorted({int(box[4]) for box in boxes})
        samples.append(Sample(f"s{i}", pixels(i), mask=mask, boxes=boxes, labels=labels, caption=f"a red ship, {i} ü"))
    samples[0].sound = np.zeros(80, np.int16), 8000
    samples[1].label = 2
    with ShardWriter(tmp_path / "made", "made", CLASSES, MASK_CLASSES, samples_per_shard=4) as writer:
        for i, sample in enumerate(samples):
            writer.write(("train", "val", "test")[i % 3], sample)
    return tmp_path / "made"


def round_trip(dataset: Path, name: str, tmp_path: Path, **options: Any) -> dict[bytes, dict[str, Any]]:
    """Export a data set and make one of the export by the command that the export names."""
    summary = export(name, dataset, tmp_path / "exported", **options)
    _, _, _, recipe, _, *arguments = shlex.split(summary.remake)
    again = dict(argument.split("=", 1) for argument in arguments)
    make(recipe, tmp_path / "again", **again)
    assert validate(tmp_path / "again").problems == []
    return contents(tmp_path / "again")


def without(found: dict[bytes, dict[str, Any]], *components: str) -> dict[bytes, dict[str, Any]]:
    return {image: {k: v for k, v in item.items() if k not in components} for image, item in found.items()}


def test_the_folder_export_holds_everything(dataset: Path, tmp_path: Path) -> None:
    assert round_trip(dataset, "folder", tmp_path) == contents(dataset)
    assert read_card(tmp_path / "again").classes == CLASSES
    assert read_card(tmp_path / "again").mask_classes == MASK_CLASSES


def test_the_coco_export_holds_images_boxes_masks_and_captions(dataset: Path, tmp_path: Path) -> None:
    lost = "class", "sound"
    assert without(round_trip(dataset, "coco", tmp_path), *lost) == without(contents(dataset), *lost)
    assert read_card(tmp_path / "again").classes == CLASSES


def test_the_yolo_export_holds_images_and_boxes(dataset: Path, tmp_path: Path) -> None:
    lost = "class", "sound", "mask", "caption"
    assert without(round_trip(dataset, "yolo", tmp_path), *lost) == without(contents(dataset), *lost)
    assert read_card(tmp_path / "again").classes == CLASSES


def test_polygons_of_the_yolo_export_give_the_masks_back(dataset: Path, tmp_path: Path) -> None:
    found = round_trip(dataset, "yolo", tmp_path, labels="polygons")
    assert {image: item["mask"] for image, item in found.items()} == {
        image: item["mask"] for image, item in contents(dataset).items()
    }


def written(folder: Path, *samples: Sample, classes: list[str] = CLASSES, split: str = "train") -> Path:
    with ShardWriter(folder, "made", classes, MASK_CLASSES) as writer:
        for sample in samples:
            writer.write(split, sample)
    return folder


def test_pycocotools_reads_the_export_and_gives_the_same_masks(dataset: Path, tmp_path: Path) -> None:
    export("coco", dataset, tmp_path / "coco")
    expected = {item["caption"]: item["mask"] for item in contents(dataset).values()}
    for split in ("train", "val", "test"):
        coco, captions = (
            COCO(tmp_path / f"coco/annotations/{kind}_{split}.json") for kind in ("instances", "captions")
        )
        assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == CLASSES
        for image in coco.imgs.values():
            assert (tmp_path / "coco" / split / image["file_name"]).is_file()
            found = np.full((image["height"], image["width"]), "background", object)
            for item in coco.loadAnns(coco.getAnnIds([image["id"]])):
                region = coco.annToMask(item).astype(bool)
                assert item["area"] == region.sum() and not (found[region] != "background").any()
                found[region] = coco.cats[item["category_id"]]["name"]
            (caption,) = captions.loadAnns(captions.getAnnIds([image["id"]]))
            assert np.array_equal(found, expected[caption["caption"].encode()])


def test_pixels_of_unknown_class_are_a_crowd_in_coco_and_come_back(tmp_path: Path) -> None:
    mask, boxes = objects((1, 1, 5, 6, 0))
    mask[8:10, 9:14] = 255
    folder = written(tmp_path / "made", Sample("a", pixels(0), mask=mask, boxes=boxes, labels=[0]))
    (found,) = round_trip(folder, "coco", tmp_path).values()
    assert (np.array(found["mask"]) == "?").sum() == 10 and found["labels"] == ["cat"]


def test_the_mask_of_a_sample_without_boxes_gives_objects(tmp_path: Path) -> None:
    mask, _ = objects((1, 1, 5, 6, 0), (9, 1, 14, 6, 0))
    (found,) = round_trip(written(tmp_path / "made", Sample("a", pixels(0), mask=mask)), "yolo", tmp_path).values()
    assert found["boxes"] == [("cat", 1, 1, 5, 6), ("cat", 9, 1, 14, 6)]


def test_what_a_format_cannot_hold_is_counted(tmp_path: Path) -> None:
    samples = Sample("a", pixels(0), label=1), Sample("b", pixels(1), boxes=[[1, 1, 5, 5, 0]], labels=[0, 2])
    folder = written(tmp_path / "made", *samples)
    summary = export("coco", folder, tmp_path / "coco")
    assert sorted(summary.notices.values()) == [1, 1, 1]
    assert "1 samples: neither boxes nor a mask, so they are left out" in summary.text()
    assert "1 samples: labels of classes without a box" in summary.text()
    assert summary.text().endswith(f"To read it back: mtgen shards make coco DATASET root={tmp_path / 'coco'}")
    assert len(json.loads((tmp_path / "coco/annotations/instances_train.json").read_text())["images"]) == 1
    assert export("folder", folder, tmp_path / "folder").notices == {}


def test_data_yaml_has_the_keys_that_ultralytics_needs(dataset: Path, tmp_path: Path) -> None:
    export("yolo", dataset, tmp_path / "all")
    content = yaml.safe_load((tmp_path / "all/data.yaml").read_text())
    assert content == {"train": "images/train", "val": "images/val", "test": "images/test"} | {
        "nc": 3,
        "names": dict(enumerate(CLASSES)),
    }
    folder = written(tmp_path / "generated", Sample("a", pixels(0), boxes=[], labels=[]), split="test")
    export("yolo", folder, tmp_path / "one")
    content = yaml.safe_load((tmp_path / "one/data.yaml").read_text())
    assert content["train"] == content["val"] == "images/test"


def test_an_image_with_an_orientation_is_exported_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels(0)).save(tmp_path / "x.jpg", exif=exif)
    sample = Sample("a", (tmp_path / "x.jpg").read_bytes(), boxes=[[0, 0, 12, 3, 0]], labels=[0])
    folder = written(tmp_path / "made", sample)
    assert round_trip(folder, "coco", tmp_path) == contents(folder)
    with Image.open(tmp_path / "exported/train/a.png") as picture:
        assert picture.size == (12, 16)


def test_names_of_classes_that_cannot_be_folders_are_replaced_and_stay_different(tmp_path: Path) -> None:
    names = ["and/or", "and_or", "..", ".hidden", "Cat", "cat", "  ", "ü" * 200]
    samples = [Sample(f"s{i}", pixels(i), label=i) for i in range(len(names))]
    found = round_trip(written(tmp_path / "made", *samples, classes=names), "folder", tmp_path)
    again = read_card(tmp_path / "again").classes
    assert again[:6] == ["and_or", "and_or_1", "_..", "_.hidden", "Cat", "cat_5"] and len(set(again)) == len(names)
    assert [found[pixels(i).tobytes()]["class"] for i in range(len(names))] == again


def test_a_folder_that_is_not_empty_is_refused_and_a_failed_export_leaves_nothing(
    dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("mine")
    with pytest.raises(DataError, match="full: is not an empty folder; choose another one"):
        export("coco", dataset, tmp_path / "full")

    def stop(done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export("coco", dataset, tmp_path / "new", progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "made"]


def test_unknown_formats_and_options_are_errors() -> None:
    assert EXPORTERS.names() == ["coco", "folder", "yolo"]
    with pytest.raises(ConfigError, match="unknown export format 'coko'; did you mean 'coco'"):
        find_entry(EXPORTERS, "coko")
    with pytest.raises(ConfigError, match="labels"):
        parse_options(find_entry(EXPORTERS, "yolo").Options, ["labels=masks"])


MASKS = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 2, 255]))


@settings(max_examples=60, deadline=None)
@given(MASKS, st.data())
def test_objects_divide_the_mask_without_rest_and_their_outlines_give_it_back(mask: np.ndarray, data: Any) -> None:
    height, width = mask.shape
    corner = st.tuples(st.integers(0, width - 1), st.integers(0, height - 1))
    boxes = [
        [
            x,
            y,
            data.draw(st.integers(x + 1, width)),
            data.draw(st.integers(y + 1, height)),
            data.draw(st.integers(0, 1)),
        ]
        for x, y in data.draw(st.lists(corner, max_size=4))
    ]
    found = instances(boxes, mask, ["cat", "dog"], ["background", "cat", "dog"])
    assert [item.boxed for item in found] == [True] * len(boxes) + [False] * (len(found) - len(boxes))
    again = np.zeros_like(mask)
    for item in found:
        if item.region is not None and item.region.any():
            traced = [outline for left, top, part in parts(item.region) for outline in outlines(part, left, top)]
            points = [
                coordinate / (height if i % 2 else width) for i, coordinate in enumerate(np.ravel(joined(traced)))
            ]
            scaled = [value * (height if i % 2 else width) for i, value in enumerate(points)]  # as YOLO stores it
            assert np.array_equal(polygon(scaled, height, width), item.region)
            assert not again[item.region].any()
            again[item.region] = ["background", "cat", "dog"].index(item.name)
    assert np.array_equal(again, np.where(mask == 255, 0, mask))
