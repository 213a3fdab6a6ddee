"""The recipe folder on what people have: no kind of input gives wrong labels without a word."""

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mtgen.data.dataset_card import read_card
from mtgen.errors import DataError
from mtgen.shards.labels_beside import coordinates_in
from mtgen.shards.make import BadSamples, Understanding, make, preview


def pictures(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 6, 3), number, np.uint8)).save(root / name)
    return root


def understood(root: Path, **options: object) -> Understanding:
    return preview("folder", images=str(root), **options)


@pytest.mark.parametrize(
    "names",
    [("train", "valid"), ("Train", "VAL"), ("training_set", "dev"), ("TRAIN", "validation"), ("trn", "Val Data")],
)
def test_split_folders_of_any_usual_name_are_splits_and_class_folders_classes(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    found = understood(pictures(tmp_path, *(f"{split}/{name}/1.png" for split in names for name in ("cat", "dog"))))
    assert {split: tally.samples for split, tally in found.tallies.items()} == {"train": 2, "val": 2}
    assert found.card.classes == ["cat", "dog"]


@pytest.mark.parametrize(
    "hidden", [".ipynb_checkpoints/1.png", "cat/.ipynb_checkpoints/1.png", "__MACOSX/cat/1.png", "@eaDir/1.png",
               "cat/._1.png", ".Trash-0/a.png", "$RECYCLE.BIN/a.png"],
)  # fmt: skip
def test_hidden_and_system_files_are_left_alone_and_counted(tmp_path: Path, hidden: str) -> None:
    found = understood(pictures(tmp_path, "cat/1.png", "dog/1.png", hidden))
    assert found.card.classes == ["cat", "dog"] and sum(t.samples for t in found.tallies.values()) == 2
    assert found.left_alone[0].startswith("1 hidden or system files (")


def test_other_suffixes_are_read_or_counted(tmp_path: Path) -> None:
    pictures(tmp_path, "cat/1.png")
    shutil.copy(Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg") or tmp_path / "a.jpg", tmp_path / "cat/2.JFIF")
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "cat/3.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    found = understood(tmp_path)
    assert sum(tally.samples for tally in found.tallies.values()) == 2
    assert found.left_alone == ["1 .heic files (cat/3.HEIC)"]


@given(st.lists(st.text("abcé \u0301.-日", min_size=1, max_size=4), min_size=1, max_size=3, unique=True))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_names_of_classes_are_kept_in_their_composed_form(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    names = [name for name in names if not name.startswith(".")] or ["a"]
    root = pictures(tmp_path_factory.mktemp("names"), *(f"train/{name}/1.png" for name in names))
    assert understood(root).card.classes == sorted({unicodedata.normalize("NFC", name) for name in names})


def test_one_class_in_two_unicode_forms_is_one_and_said(tmp_path: Path) -> None:
    found = understood(pictures(tmp_path, "caf\u00e9/1.png", "cafe\u0301/2.png"))
    assert found.card.classes == ["caf\u00e9"] and "Unicode form" in found.text()


def test_a_class_folder_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    pictures(tmp_path, "cat/1.png", "new/1.png")
    (tmp_path / "new").rename(Path(str(tmp_path).encode().decode()) / "\udce9t\udce9")
    with pytest.raises(DataError, match="the name of the class folder .* is not UTF-8; rename it"):
        understood(tmp_path)


def test_nested_class_folders_are_seen_through_or_said(tmp_path: Path) -> None:
    found = understood(pictures(tmp_path, "animals/cat/1.png", "animals/dog/1.png"))
    assert found.card.classes == ["cat", "dog"] and "animals is around all other folders" in found.text()
    pictures(tmp_path, "cars/bmw/1.png")
    assert understood(tmp_path).card.classes == ["animals", "cars"]
    assert "animals/cat, animals/dog, cars/bmw (nested=inner makes them classes)" in understood(tmp_path).text()
    assert understood(tmp_path, nested="inner").card.classes == ["bmw", "cat", "dog"]


COORDINATES = ["1 0.7 0.4 0.2 0.1", "0 0.5 0.5 0.1 0.1\n2 .1 .2 .3 .4\n", "0 0.1 0.1 0.2 0.1 0.2 0.2", "cat 1 2 30 40",
               "1\n10 20 30 40", "Car 0.00 0 1.85 387.63 181.54 423.81 203.12 1.67 1.87 3.69 -16.53"]  # fmt: skip


@pytest.mark.parametrize("text", COORDINATES)
def test_coordinates_are_not_captions(tmp_path: Path, text: str) -> None:
    pictures(tmp_path, "1.png", "2.png")
    (tmp_path / "1.txt").write_text(text)
    with pytest.raises(DataError, match=r"1.txt: .* is coordinates, not a caption .*captions=false leaves them out"):
        understood(tmp_path)
    assert sum(tally.captions for tally in understood(tmp_path, captions=True).tallies.values()) == 1
    assert sum(tally.captions for tally in understood(tmp_path, captions=False).tallies.values()) == 0


@pytest.mark.parametrize(
    "text", ["a red ship", "7", "2 cats and 3 dogs", "route 66 at 5 pm", "", "1984 by Orwell, 328 p."]
)
def test_captions_may_have_numbers(text: str) -> None:
    assert not coordinates_in(text)


def test_a_byte_order_mark_is_not_a_part_of_a_caption(tmp_path: Path) -> None:
    pictures(tmp_path, "1.png")
    (tmp_path / "1.txt").write_bytes(b"\xef\xbb\xbfa red ship\r\n")
    assert understood(tmp_path).tallies["train"].caption == "a red ship"


def test_transparent_pixels_are_said(tmp_path: Path) -> None:
    pictures(tmp_path, "1.png")
    Image.fromarray(np.zeros((4, 6, 4), np.uint8)).save(tmp_path / "2.png")
    Image.fromarray(np.full((4, 6, 4), 255, np.uint8)).save(tmp_path / "3.png")
    assert "1 images have transparent pixels" in understood(tmp_path).text()


def test_the_summary_names_what_was_understood(tmp_path: Path) -> None:
    pictures(tmp_path, "train/cat/1.png", "train/cat/2.png", "val/cat/3.png", "val/dog/4.png")
    Image.fromarray(np.eye(4, 6, dtype=np.uint8) * 255).save(tmp_path / "train/cat/1_mask.png")
    (tmp_path / "train/cat/2.txt").write_text("a cat on a mat")
    (tmp_path / "train/cat/2.json").write_text('{"boxes": [[0, 0, 2, 2, 1]]}')
    (tmp_path / "notes.md").touch()
    found = understood(tmp_path, classes=["cat", "dog", "cow"])
    assert [" ".join(line.split()) for line in found.text().splitlines()] == [
        "splits train 2, val 2",
        "classes cat 3, dog 1",
        "no sample 1 of 3 classes: cow",
        "masks 1 of 4 samples: background 83.3% of pixels in 1, foreground 16.7% of pixels in 1",
        "boxes 1 of 4 samples: 1: dog 1",
        "captions 1, such as 'a cat on a mat'",
        "note 1 pictures are masks by their names, such as 1_mask.png of 1.png (mask_suffix=none makes them images)",
        "note masks hold 0 and 255 alone, so 255 is taken for the class 'foreground', not for unknown",
        "left alone 1 .md files (notes.md)",
    ]


def test_looking_writes_nothing_and_counts_what_is_packed(tmp_path: Path) -> None:
    pictures(tmp_path / "in", "cat/1.png", "cat/2.png", "dog/1.png")
    seen: list[Understanding] = []
    looked = preview("folder", images=str(tmp_path / "in"))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    make("folder", tmp_path / "out", understood=seen.append, images=str(tmp_path / "in"))
    assert seen[0].text() == looked.text()


def test_bad_samples_are_left_out_on_request_counted_and_listed(tmp_path: Path) -> None:
    pictures(tmp_path / "in", *(f"{i}.png" for i in range(6)))
    for bad in (0, 1, 4):
        (tmp_path / f"in/{bad}.png").write_bytes(b"no picture")
    with pytest.raises(BadSamples):
        make("folder", tmp_path / "out", images=str(tmp_path / "in"), test=0, samples_per_shard=2)
    seen: list[Understanding] = []
    options = {"images": str(tmp_path / "in"), "test": 0, "samples_per_shard": 2}
    card = make("folder", tmp_path / "out", skip_bad=True, understood=seen.append, **options)
    assert card.splits["train"].samples == 3 == read_card(tmp_path / "out").splits["train"].samples
    listed = (tmp_path / "out/left_out.txt").read_text().splitlines()
    assert listed == seen[0].problems and len(listed) == 3
    make("folder", tmp_path / "out", skip_bad=True, overwrite=True, **options)


def test_if_nothing_is_left_the_problems_are_the_error(tmp_path: Path) -> None:
    pictures(tmp_path / "in", "1.png").joinpath("1.png").write_bytes(b"no picture")
    with pytest.raises(BadSamples, match="1.png"):
        make("folder", tmp_path / "out", skip_bad=True, images=str(tmp_path / "in"))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
