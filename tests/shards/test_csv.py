"""The recipe csv: tables of Kaggle, Roboflow, Open Images and one's own, and clear errors."""

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.made_shards import made, picture

from mtgen.data.dataset_card import read_card
from mtgen.errors import ConfigError, DataError
from mtgen.shards.listing import Listing
from mtgen.shards.make import make
from mtgen.shards.recipe import RECIPES
from mtgen.shards.recipes.csv import CsvOptions


def table(
    folder: Path, text: str, images: tuple[str, ...] = ("a.jpg", "b.jpg"), name: str = "list.csv"
) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        picture(folder / image, i)
    (folder / name).write_text(text, encoding="utf-8")
    return {"table": str(folder / name)}


def test_all_columns(tmp_path: Path) -> None:
    picture(tmp_path / "in/m.png", image=np.ones((12, 16), np.uint8))
    with wave.open(str(tmp_path / "in/s.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    text = "\ufeffimage,class,caption,mask,sound,split,year\n"
    text += 'a.jpg,cat,"a ship, red",m.png,s.wav,train,1999\nb.jpg,dog,,,,Validation,\n'
    options = table(tmp_path / "in", text)
    first, second = made("csv", tmp_path / "out", **options, mask_classes=["ground", "thing"])
    assert first.pop("sound").startswith(b"RIFF") and {value for row in first.pop("mask") for value in row} == {"thing"}
    assert first == {"split": "train", "class": "cat", "caption": b"a ship, red"}
    assert second == {"split": "val", "class": "dog"}
    (notice,) = RECIPES["csv"](CsvOptions(**options), 0).notices
    assert "label from 'class'" in notice and notice.endswith("not used: year")


def test_kaggle_has_ids_without_a_suffix_and_numbers_as_classes(tmp_path: Path) -> None:
    options = table(tmp_path / "in", "id;breed\na;10\nb;9\n")
    first, second = made("csv", tmp_path / "out", **options, image="id", label="breed", test=0)
    assert (first["class"], second["class"]) == ("10", "9") and read_card(tmp_path / "out").classes == ["9", "10"]


def test_roboflow_has_one_row_per_box(tmp_path: Path) -> None:
    text = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    text += "a.jpg,16,12,cat,1,2,5,6\na.jpg,16,12,dog,0,0,20,3\nb.jpg,16,12,,,,,\n"
    first, second = made("csv", tmp_path / "out", **table(tmp_path / "in", text, name="_annotations.csv"), test=0)
    assert first["boxes"] == [("cat", 1, 2, 5, 6), ("dog", 0, 0, 16, 3)] and first["labels"] == ["cat", "dog"]
    assert second["boxes"] == []


def test_open_images_has_fractions_machine_names_and_verified_absent_classes(tmp_path: Path) -> None:
    names = table(tmp_path / "in", "/m/01,Tortoise\n/m/02,Sea turtle\n/m/03,Fish\n", (), "class-descriptions.csv")[
        "table"
    ]
    text = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf\n"
    text += "a,xclick,/m/01,1,0.25,0.75,0.5,1,0,0\na,xclick,/m/03,0,0,1,0,1,0,0\nb,xclick,/m/02,1,0,1,0,0.25,0,0\n"
    first, second = made("csv", tmp_path / "out", **table(tmp_path / "in", text), names=names, test=0)
    assert first["boxes"] == [("Tortoise", 4, 6, 12, 12)] and second["boxes"] == [("Sea turtle", 0, 0, 16, 3)]


def test_several_classes_of_an_image_are_its_labels(tmp_path: Path) -> None:
    options = table(tmp_path / "in", "file,label\na.jpg,cat\na.jpg,dog\na.jpg,cat\n", ("a.jpg",))
    (found,) = made("csv", tmp_path / "out", **options, test=0)
    assert found["labels"] == ["cat", "dog"] and "class" not in found


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "is empty; write a header"),
        ("image,class\n", {}, "has no rows after its header"),
        ("picture,class\na.jpg,cat\n", {}, "no column of images; name it with image=COLUMN; possible: picture, class"),
        ("image,class\na.jpg,cat\n", {"label": "klass"}, "label=klass: no column .* did you mean 'class'"),
        ("image,class\na.jpg,cat,red\n", {}, "line 2: 3 cells for 2 columns; put quotes around"),
        ("image,image\na.jpg,b.jpg\n", {}, "two columns are called 'image'"),
        ("image,class\na.jpg,cat\n", {"classes": ["dog"]}, "the class 'cat' is not in classes"),
        ("image,xmin,ymin,xmax,ymax\na.jpg,1,2,3,4\n", {}, "boxes need a class; name its column"),
        ("image,class,xmin,ymin,xmax,ymax\na.jpg,cat,1,2,x,4\n", {}, "line 2: a box of 1, 2, x, 4"),
        ("image,class,xmin,ymin,xmax,ymax\na.jpg,cat,5,2,3,4\n", {}, "line 2: a reversed box"),
        ("image,class\na.jpg,cat\n", {"boxes": ["a", "b"]}, "boxes: not four columns"),
    ],
)
def test_a_wrong_table_is_one_clear_error(tmp_path: Path, text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises((DataError, ConfigError), match=message):
        make("csv", tmp_path / "out", **table(tmp_path / "in", text), **options)


def test_rows_that_cannot_be_used_are_all_named(tmp_path: Path) -> None:
    text = "image,class,split\na.jpg,cat,train\ngone.jpg,cat,train\nclip.mp4,cat,train\nb.jpg,cat,week 1\n,cat,train\n"
    faults = RECIPES["csv"](CsvOptions(**table(tmp_path, text)), 0).faults
    assert len(faults) == 4 and "line 3" in faults[0] and "clip.mp4 is a video; save its frames" in faults[1]
    assert "line 5: the split 'week 1'" in faults[2] and "line 6: names no image" in faults[3]


def test_a_table_in_another_encoding_is_named(tmp_path: Path) -> None:
    options = table(tmp_path, "image,class\na.jpg,cat\n")
    Path(options["table"]).write_bytes("image,class\na.jpg,Käfer\n".encode("cp1252"))
    with pytest.raises(DataError, match="list.csv: not UTF-8 at byte 19; save the table in UTF-8"):
        make("csv", tmp_path / "out", **options)


def test_it_proposes_itself_for_tables_with_a_column_of_images(tmp_path: Path) -> None:
    table(tmp_path, "Filename;Label\na.jpg;cat\n")
    table(tmp_path, "epoch,loss\n1,2\n", name="log.csv")
    (proposal,) = RECIPES["csv"].detect(Listing.of(tmp_path))
    assert proposal.options == {"table": str(tmp_path / "list.csv")}
