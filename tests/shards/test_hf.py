"""The recipe hf: Parquet and Arrow files as the package `datasets` writes them, folders with metadata, clear errors."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.made_shards import made, picture, pixels
from PIL import Image

from mtgen.data.dataset_card import read_card
from mtgen.errors import DataError
from mtgen.shards.listing import Listing
from mtgen.shards.make import make
from mtgen.shards.recipe import RECIPES

NAMES = {"names": ["cat", "dog"], "_type": "ClassLabel"}


def encoded(seed: int, form: str = "JPEG", image: np.ndarray | None = None) -> dict[str, Any]:
    """A cell of the type Image."""
    file = io.BytesIO()
    Image.fromarray(pixels(seed) if image is None else image).save(file, form)
    return {"bytes": file.getvalue(), "path": f"{seed}.jpg"}


def parquet(path: Path, rows: list[dict[str, Any]], features: dict[str, Any] | None = None) -> None:
    """A Parquet file with one row per row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = pa.Table.from_pylist(rows)
    if features is not None:
        stored = stored.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(stored, path, row_group_size=1)


def test_parquet_files_of_the_hub_with_class_labels_and_captions(tmp_path: Path) -> None:
    rows = [{"image": encoded(i), "label": i % 2, "text": f"a ship {i}"} for i in range(4)]
    features = {"image": {"_type": "Image"}, "label": NAMES, "text": {"dtype": "string", "_type": "Value"}}
    parquet(tmp_path / "in/data/train-00000-of-00002.parquet", rows[:2], features)
    parquet(tmp_path / "in/data/train-00001-of-00002.parquet", rows[2:3], features)
    parquet(tmp_path / "in/data/validation-00000-of-00001.parquet", rows[3:], features)
    found = made("hf", tmp_path / "out", root=str(tmp_path / "in"))
    assert [item["split"] for item in found] == ["train", "train", "train", "val"]
    assert found[1] == {"split": "train", "class": "dog", "caption": b"a ship 1"}
    assert read_card(tmp_path / "out").classes == ["cat", "dog"]


@pytest.mark.parametrize("as_list", [True, False], ids=["list of objects", "object of lists"])
def test_objects_with_coco_boxes_as_in_cppe_5(tmp_path: Path, as_list: bool) -> None:
    category = {"feature": NAMES, "_type": "Sequence"}
    features = {"image": {"_type": "Image"}, "objects": {"bbox": {"_type": "Sequence"}, "category": category}}
    lists = {"id": [1, 2], "bbox": [[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 99.0, 5.0]], "category": [1, 0]}
    objects = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    parquet(tmp_path / "in/train.parquet", [{"image": encoded(0), "objects": objects if as_list else lists}], features)
    (found,) = made("hf", tmp_path / "out", root=str(tmp_path / "in"), test=0)
    assert found["boxes"] == [("cat", 0, 0, 16, 5), ("dog", 1, 2, 4, 6)] and found["labels"] == ["cat", "dog"]


def test_a_folder_of_save_to_disk(tmp_path: Path) -> None:
    """dataset_dict.json, and for each split a stream of Arrow, its state and its description."""
    features = {"image": {"_type": "Image"}, "label": NAMES}
    for i, split in enumerate(("train", "test")):
        folder = tmp_path / "in" / split
        folder.mkdir(parents=True)
        stored = pa.Table.from_pylist([{"image": encoded(i, "TIFF"), "label": i}])
        with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file:
            with pa.ipc.new_stream(file, stored.schema) as writer:
                writer.write_table(stored)
        (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
        (folder / "state.json").write_text("{}")
    (tmp_path / "in/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    found = made("hf", tmp_path / "out", root=str(tmp_path / "in"))
    assert [(item["split"], item["class"]) for item in found] == [("train", "cat"), ("test", "dog")]


def test_a_segmentation_column(tmp_path: Path) -> None:
    mask = encoded(0, "PNG", np.full((12, 16), 1, np.uint8))
    parquet(tmp_path / "in/train.parquet", [{"image": encoded(0), "annotation": mask}, {"image": encoded(1)}])
    first, second = made("hf", tmp_path / "out", root=str(tmp_path / "in"), test=0)
    assert {value for row in first["mask"] for value in row} == {"class 1"} and "mask" not in second


def test_images_with_metadata_jsonl(tmp_path: Path) -> None:
    lines = []
    for i in range(2):
        picture(tmp_path / f"in/train/{i}.png", i)
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"ship {i}", "label": "cät" if i else "dog"}))
    (tmp_path / "in/train/metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    first, second = made("hf", tmp_path / "out", root=str(tmp_path / "in"), test=0)
    assert (first["class"], first["caption"]) == ("dog", b"ship 0") and second["class"] == "cät"


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"image": encoded(0), "label": 7}, {"classes": ["a"]}, "train.parquet: row 0: unknown class 7"),
        ({"picture": 1}, {}, "no column of images; name it with image=COLUMN; possible: picture"),
        ({"image": encoded(0)}, {"label": "klass"}, "label=klass: no column has this name"),
        ({"image": {"bytes": None, "path": "/gone.jpg"}}, {}, "the file '/gone.jpg' is not in"),
        ({"image": {"bytes": b"no image", "path": None}}, {}, "row 0: damaged image"),
        (
            {"image": encoded(0), "objects": {"bbox": [[9.0, 9.0, 4.0, 4.0]], "category": ["cat"]}},
            {"boxes": "xyxy"},
            "a reversed box.*",
        ),
    ],
)
def test_a_wrong_row_is_named_with_its_remedy(
    tmp_path: Path, row: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    parquet(tmp_path / "in/train.parquet", [row])
    with pytest.raises(DataError, match=message):
        make("hf", tmp_path / "out", root=str(tmp_path / "in"), **options)


def test_a_folder_without_a_data_set_and_a_damaged_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no Parquet, Arrow or metadata.jsonl file with rows"):
        make("hf", tmp_path / "out", root=str(tmp_path))
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="train.parquet: cannot be read"):
        make("hf", tmp_path / "out", root=str(tmp_path))


def test_it_proposes_itself_for_parquet_files(tmp_path: Path) -> None:
    parquet(tmp_path / "data/train-00000-of-00001.parquet", [{"image": encoded(0)}])
    (proposal,) = RECIPES["hf"].detect(Listing.of(tmp_path))
    assert proposal.options == {"root": str(tmp_path)}
