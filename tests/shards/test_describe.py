"""`dataset.json` for existing shards is valid, and written from their content alone."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from braceexpand import braceexpand
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mtgen.data.index import open_index
from mtgen.errors import DataError
from mtgen.shards.describe import describe, patterns, split_of
from mtgen.shards.split import split
from mtgen.shards.validate import validate


def picture(value: int = 0, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 12), value, np.uint8)).save(file, form)
    return file.getvalue()


def tar(path: Path, *samples: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as out:
        for number, sample in enumerate(samples):
            out.write(
                {
                    "__key__": f"{path.stem}{number:04d}",
                    **({} if {"png", "jpg"} & sample.keys() else {"png": picture()}),
                    **sample,
                }
            )
    return path.parent


def img2dataset(number: int) -> dict[str, Any]:
    """A sample as written by img2dataset."""
    values = {
        "caption": "a cat",
        "url": f"https://example.org/{number}.jpg",
        "key": f"{number:09d}",
        "status": "success",
        "exif": "{}",
    }
    values |= {"error_message": None, "width": 12, "height": 8, "original_width": 600, "original_height": 400}
    return {"jpg": picture(form="JPEG"), "txt": b"a cat", "json": json.dumps(values).encode()}


def test_shards_of_img2dataset_validate_and_no_boxes_are_invented(tmp_path: Path) -> None:
    for number in range(2):
        tar(tmp_path / f"{number:05d}.tar", *map(img2dataset, range(3)))
    found = describe(tmp_path)
    assert found.card.splits["train"].model_dump() == {"samples": 6, "shards": "{00000..00001}.tar"}
    assert validate(tmp_path).problems == []
    present = open_index(tmp_path, "train").present
    assert present["caption"].all() and not present["boxes"].any()
    assert "6 .json without boxes or labels" in found.text()


def test_ignored_members_are_kept_by_a_split(tmp_path: Path) -> None:
    describe(tar(tmp_path / "in/0.tar", img2dataset(0)))
    split(tmp_path / "in", tmp_path / "out", {"test": 1.0})
    with tarfile.open(tmp_path / "out/test-000000.tar") as out:
        content = out.extractfile("00000.json")
        assert content is not None and content.read() == img2dataset(0)["json"]


def test_an_empty_list_of_boxes_counts_as_boxes_but_other_json_does_not(tmp_path: Path) -> None:
    empty = {"json": b'{"boxes": []}'}
    tar(
        tmp_path / "a.tar",
        {"json": b"{}"},
        empty,
        {"json": b'{"boxes": [[0, 0, 2, 2, 3]]}'},
        {"json": b'{"labels": [1]}'},
    )
    describe(tmp_path)
    present = open_index(tmp_path, "train").present
    assert present["boxes"].tolist() == [False, True, True, False], "labels alone do not say that there are no boxes"
    assert present["tags"].tolist() == [False, True, True, True]


def test_plain_webdataset_is_described(tmp_path: Path) -> None:
    tar(tmp_path / "set-train-0.tar", {"cls": b"0", "mask.png": picture(3)}, {"cls": b"4"})
    tar(tmp_path / "set-train-1.tar", {"cls": b"2", "mask.png": picture(255), "seg.npy": b"x"})
    tar(tmp_path / "set-val-0.tar", {"json": b'{"boxes": [[0, 0, 2, 2, 6]]}'})
    found = describe(tmp_path)
    assert found.card.classes == [f"class {n}" for n in range(7)] and found.card.mask_classes == [
        f"mask {n}" for n in range(4)
    ]
    assert {name: split.samples for name, split in found.card.splits.items()} == {"train": 3, "val": 1}
    assert found.card.splits["train"].shards == "set-train-{0..1}.tar"
    assert "train: 3 samples in 2 shards, 3 with class, 2 with mask" in found.text() and ".seg.npy" in found.text()
    assert validate(tmp_path).problems == []


def test_shards_in_subfolders_are_found_except_in_hidden_ones(tmp_path: Path) -> None:
    for folder in ("train", "validation", ".partial"):
        tar(tmp_path / folder / "0001.tar", {})
    (tmp_path / "unpacked.tar").mkdir()
    assert {n: s.shards for n, s in describe(tmp_path).card.splits.items()} == {
        "train": "train/0001.tar",
        "val": "validation/0001.tar",
    }
    assert validate(tmp_path).problems == []


def test_class_names_are_read_from_a_file(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\nbird\n\n")
    folder = tar(tmp_path / "set/x.tar", {"cls": b"1"})
    assert describe(folder, names).card.classes == ["cat", "dog", "bird"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\n", r"names 1 classes \(0 to 0\), but x.tar: x0000 has class 2; add the missing"),
        ("cat\n\ndog\n", "line 2 is empty"),
        ("cat\ndog\ncat\n", "line 3 repeats 'cat' of line 1"),
        ("", "is empty"),
    ],
)
def test_an_invalid_list_of_classes_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(text)
    folder = tar(tmp_path / "set/x.tar", {"cls": b"2"})
    with pytest.raises(DataError, match=message) as error:
        describe(folder, tmp_path / "names.txt")
    assert "\n" not in str(error.value) and not (folder / "dataset.json").exists()


def test_an_existing_dataset_json_is_only_replaced_with_overwrite(tmp_path: Path) -> None:
    tar(tmp_path / "x.tar", {})
    describe(tmp_path)
    (tmp_path / "dataset.json").write_text("mine")
    with pytest.raises(DataError, match=r"dataset.json: exists already"):
        describe(tmp_path)
    assert (tmp_path / "dataset.json").read_text() == "mine"
    assert describe(tmp_path, overwrite=True).card.splits["train"].samples == 1


def test_unusable_samples_are_named_and_the_rest_is_described(tmp_path: Path) -> None:
    bad = {"cls": b"cat"}, {"cls": b"9999999999"}, {"json": b"["}, {"mask.png": picture(form="JPEG")}, {"png": b"x"}
    tar(tmp_path / "x.tar", {"cls": b"1"}, *bad)
    found = describe(tmp_path)
    assert [problem.key for problem in found.problems] == [f"x{number:04d}" for number in range(1, 6)]
    assert found.card.classes == ["class 0", "class 1"] and "5 problems:" in found.text()


def _nothing(_: Path) -> None:
    pass


def _compressed(folder: Path) -> None:
    (folder / "x.tar.gz").write_bytes(b"")


def _empty(folder: Path) -> None:
    (folder / "x.tar").write_bytes(bytes(10240))


def _garbage(folder: Path) -> None:
    (folder / "x.tar").write_bytes(b"x" * 2000)


def _braced(folder: Path) -> None:
    tar(folder / "x{0..3}.tar", {})


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (_nothing, "has no .tar files; give the folder"),
        (_compressed, "x.tar.gz is compressed: gunzip it"),
        (_empty, "no samples in its 1 tar files"),
        (_garbage, "x.tar: not a readable tar"),
        (_braced, r"x\{0..3\}.tar: braces denote ranges of numbers"),
        (Path.rmdir, "the folder does not exist"),
    ],
)
def test_a_folder_without_samples_is_one_clear_error(
    fill: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    fill(folder)
    with pytest.raises(DataError, match=message):
        describe(folder)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("00000.tar", "train"),
        ("cc3m-validation-0001.tar", "val"),
        ("test/0001.tar", "test"),
        ("test/train-1.tar", "train"),
        ("latest.tar", "train"),
    ],
)
def test_the_split_is_a_word_of_the_name(file: str, name: str) -> None:
    assert split_of(file) == name


@given(
    st.lists(
        st.tuples(st.sampled_from(["a-", "b", "x/7-"]), st.integers(0, 120), st.sampled_from(["", "%03d", "%06d"])),
        min_size=1,
    )
)
def test_patterns_expand_to_exactly_the_files(parts: list[tuple[str, int, str]]) -> None:
    files = [f"{name}{form % number if form else number}.tar" for name, number, form in parts]
    found = patterns(files)
    assert [
        file for pattern in ([found] if isinstance(found, str) else found) for file in braceexpand(pattern)
    ] == files


@pytest.mark.parametrize("caption", [b"", b" \n", b"\xef\xbb\xbf"])
def test_an_empty_caption_is_none(tmp_path: Path, caption: bytes) -> None:
    describe(tar(tmp_path / "0.tar", {"txt": caption}, {"txt": b"\xef\xbb\xbfa boat"}))
    assert open_index(tmp_path, "train").present["caption"].tolist() == [False, True]
    assert validate(tmp_path).problems == []


def write_members(path: Path, *members: tuple[str, bytes]) -> None:
    with tarfile.open(path, "w") as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))


def test_members_that_do_not_follow_each_other_are_named_with_the_remedy(tmp_path: Path) -> None:
    write_members(tmp_path / "0.tar", *((f"{i}.png", picture()) for i in range(3)), ("0.txt", b"a"), ("1.txt", b"b"))
    problems = describe(tmp_path).problems
    assert [problem.key for problem in problems] == ["0", "1"]
    assert all("one after another (tar --sort=name)" in problem.what for problem in problems)


@pytest.mark.parametrize("name", ["1 Track 2.1 (Clean).jpg", "a.1.jpg", "s1.input.jpg"])
def test_names_with_more_dots_are_explained(tmp_path: Path, name: str) -> None:
    write_members(tmp_path / "0.tar", (name, picture(form="JPEG")))
    with pytest.raises(DataError, match="the key of a sample ends at the first dot of a name, .* rename the files"):
        describe(tmp_path)
    write_members(tmp_path / "1.tar", (name, picture(form="JPEG")), ("b.jpg", picture(form="JPEG")))
    assert "the key of a sample ends at the first dot" in describe(tmp_path).text()
