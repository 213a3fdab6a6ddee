"""Exports: made again into a data set, they give the same images and labels, as far as the formats hold them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtgen.data import image_io
from mtgen.data.boxes import annotation
from mtgen.data.dataset_card import read_card
from mtgen.data.index import open_index
from mtgen.shards.export import export
from mtgen.shards.make import make
from mtgen.shards.validate import validate
from mtgen.shards.write import Sample, ShardWriter

CLASSES, MASK_CLASSES = ["cat", "dog", "sky"], ["background", "cat", "dog", "sky"]


def pixels(seed: int, height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


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


def contents(folder: Path) -> dict[bytes, dict[str, Any]]:
    """Pixels of an image -> what the data set says about it, classes by their names."""
    card, found = read_card(folder), {}
    for split in card.splits:
        index = open_index(folder, split)
        for i in range(len(index)):
            data = index.read(i, "image")
            item: dict[str, Any] = {"split": split}
            if index.present["boxes"][i]:
                stored = annotation(index.read(i, "boxes"), index.width[i], index.height[i], index.class_table(i))
                item["boxes"] = sorted((card.classes[int(b[4])], *np.round(b[:4], 6)) for b in stored.boxes)
                item["labels"] = sorted(card.classes[label] for label in stored.labels)
            if index.present["mask"][i]:
                mask = image_io.pixels(index.read(i, "mask"))
                item["mask"] = [[*card.mask_classes, *["?"] * 255][value] for value in mask.ravel()]
            item["class"] = card.classes[index.label[i]] if index.label[i] >= 0 else None
            item |= {part: index.read(i, part) for part in ("caption", "sound") if index.present[part][i]}
            found[image_io.decode_upright(data).tobytes()] = item
    return found


def round_trip(dataset: Path, name: str, tmp_path: Path, **options: Any) -> dict[bytes, dict[str, Any]]:
    """Export a data set and make one of the export by the command that the export names."""
    summary = export(name, dataset, tmp_path / "exported", **options)
    recipe, arguments = summary.remake.split()[3], summary.remake.split()[5:]
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
