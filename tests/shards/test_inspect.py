"""Inspect prints commands that make data sets; what is certain to be another format is not read as a folder."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtgen.config import find_entry, parse_options
from mtgen.errors import DataError
from mtgen.shards.inspect import inspect
from mtgen.shards.make import make
from mtgen.shards.recipe import RECIPES


def put(path: Path, text: str | None = None, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if text is None:
        Image.fromarray(np.full((8, 8) if "mask" in path.stem else (8, 8, 3), value, np.uint8)).save(path)
    else:
        path.write_text(text, encoding="utf-8")
    return path


def coco(root: Path) -> None:
    images = [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}]
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4]}
    put(root / "images/a.png")
    put(
        root / "ann.json",
        json.dumps({"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": [box]}),
    )


def voc(root: Path) -> None:
    put(root / "train/a b.jpg")
    sides = "".join(f"<{side}>{n}</{side}>" for n, side in enumerate(("xmin", "ymin", "xmax", "ymax"), 1))
    put(root / "train/a b.xml", f"<annotation><object><name>x</name><bndbox>{sides}</bndbox></object></annotation>")


def yolo(root: Path) -> None:
    put(root / "a.jpg")
    put(root / "a.txt", "0 0.5 0.5 0.2 0.2\n")
    put(root / "classes.txt", "cat\n")


def folder(root: Path) -> None:
    for name in ("Train/it's a cat/1.png", "valid/dog/2.png", "valid/dog/2_mask.png"):
        put(root / name, value=1)


FORMATS = {"coco": coco, "voc": voc, "yolo": yolo, "folder": folder}


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in text.splitlines() if line.startswith("   mtgen shards make ")]


@pytest.mark.parametrize("name", FORMATS)
def test_the_first_command_makes_the_data_set(tmp_path: Path, name: str) -> None:
    root = tmp_path / "what I have [1]"
    FORMATS[name](root)
    _, _, _, recipe, _, *options = commands(inspect(root))[0]
    assert recipe == name
    assert make(recipe, tmp_path / "out", **parse_options(find_entry(RECIPES, recipe).Options, options)).splits


def test_a_single_file_is_enough(tmp_path: Path) -> None:
    coco(tmp_path)
    (command,) = commands(inspect(tmp_path / "ann.json"))
    assert command[5:] == [f"images={tmp_path / 'images'}", f"instances={tmp_path / 'ann.json'}"]


@pytest.mark.parametrize("name", ["coco", "voc"])
def test_what_is_certain_to_be_another_format_is_not_read_as_a_folder(tmp_path: Path, name: str) -> None:
    FORMATS[name](tmp_path / "in")
    with pytest.raises(DataError, match=f"that is read by `mtgen shards make {name} OUT .*; force=true reads it"):
        make("folder", tmp_path / "out", images=str(tmp_path / "in"))
    assert make("folder", tmp_path / "out", images=str(tmp_path / "in"), force=True).splits


def test_what_no_recipe_reads_is_named_with_what_to_do(tmp_path: Path) -> None:
    put(tmp_path / "a/film.mp4", "")
    assert "is a video; take images from it first: ffmpeg -i" in inspect(tmp_path / "a")
    put(tmp_path / "b/photos.zip", "")
    assert "photos.zip is an archive; unpack it: unzip" in inspect(tmp_path / "b")
    for name in ("train/cat/1.png", "val/cat/1.png", "stray.png"):
        put(tmp_path / "c" / name)
    assert re.search("folder: .*stray.png: is outside the folders train and val", inspect(tmp_path / "c"))
    with pytest.raises(DataError, match="does not exist; give a folder or a file"):
        inspect(tmp_path / "nowhere")


def test_shards_are_described_and_data_sets_looked_at(tmp_path: Path) -> None:
    folder(tmp_path / "in")
    make("folder", tmp_path / "out", images=str(tmp_path / "in"))
    assert "mtgen shards stats" in inspect(tmp_path / "out")
    (tmp_path / "out/dataset.json").unlink()
    assert "mtgen shards describe" in inspect(tmp_path / "out")
