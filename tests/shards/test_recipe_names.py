"""Names of files and classes, in any script and case, mean the same to every recipe; splits are as written."""

import csv
import json
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from helpers.made_shards import contents, picture, pixels
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtgen.shards.make import make

LETTERS = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters='/\\"')
STEMS = st.text(LETTERS, min_size=1, max_size=12).map(str.strip).filter(lambda name: name and not name.startswith("."))
NAMES = st.lists(
    STEMS | st.sampled_from(["a b", "A", "a", "a.b", "x.mask", "é", "e\u0301"]),
    min_size=2,
    max_size=4,
    unique_by=lambda name: unicodedata.normalize("NFC", name).casefold(),
)


def yolo(root: Path, names: list[str]) -> dict[str, Any]:
    for i, name in enumerate(names):
        split = ("train", "val")[i % 2]
        picture(root / f"images/{split}/{name}.png", i)
        (root / f"labels/{split}").mkdir(parents=True, exist_ok=True)
        (root / f"labels/{split}/{name}.txt").write_text(f"{i} 0.5 0.5 0.25 0.5\n")
    content = {"train": "images/train", "val": "images/val", "names": names}
    (root / "data.yaml").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return {"data": str(root)}


def coco(root: Path, names: list[str]) -> dict[str, Any]:
    for first, split in enumerate(("train", "val")):
        images, annotations = [], []
        for i, name in list(enumerate(names))[first::2]:
            picture(root / split / f"{name}.png", i)
            images.append({"id": i, "file_name": f"{name}.png", "width": 16, "height": 12})
            annotations.append(
                {"id": i, "image_id": i, "category_id": i, "bbox": [6, 3, 4, 6], "area": 24, "iscrowd": 0}
            )
        categories = [{"id": i, "name": name} for i, name in enumerate(names)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return {"root": str(root)}


def labelme(root: Path, names: list[str]) -> dict[str, Any]:
    for i, name in enumerate(names):
        split = ("Train", "valid")[i % 2]
        picture(root / split / f"{name}.png", i)
        shape = {"label": name, "points": [[6, 3], [10, 9]], "shape_type": "rectangle"}
        content = {"shapes": [shape], "imagePath": f"{name}.png", "imageWidth": 16, "imageHeight": 12}
        (root / split / f"{name}.json").write_text(json.dumps(content))
    return {"root": str(root)}


def table(root: Path, names: list[str]) -> dict[str, Any]:
    for i, name in enumerate(names):
        picture(root / f"{name}.png", i)
    with (root / "list.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label", "split", "xmin", "ymin", "xmax", "ymax"])
        rows.writerows([f"{name}.png", name, ("Training", "VAL")[i % 2], 6, 3, 10, 9] for i, name in enumerate(names))
    return {"table": str(root / "list.csv")}


@pytest.mark.parametrize(("recipe", "write"), [("yolo", yolo), ("coco", coco), ("labelme", labelme), ("csv", table)])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES)
def test_names_of_files_and_classes(recipe: str, write: Any, names: list[str]) -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / "in").mkdir()
        make(recipe, Path(folder) / "out", **write(Path(folder) / "in", names))
        found = contents(Path(folder) / "out")
    for i, name in enumerate(names):
        item = found[pixels(i).tobytes()]
        assert item["boxes"] == [(name, 6, 3, 10, 9)]
        assert item["split"] == ("train", "val")[i % 2]
