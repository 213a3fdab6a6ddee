"""Names of input files: split folders by their usual names, hidden files left alone and counted, listed names found."""

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgen.errors import DataError
from mtgen.shards.input_files import MIN_HASHED_SAMPLES, held_out
from mtgen.shards.input_names import (
    SPLIT_WORDS,
    LeftAlone,
    ListedFiles,
    files_below,
    is_system_name,
    split_folders,
    split_named,
)

ROOT = Path("photos")


def paths(*names: str) -> list[Path]:
    return [Path(name) for name in names]


@given(
    word=st.sampled_from([(split, word) for split, words in SPLIT_WORDS.items() for word in words]),
    case=st.sampled_from([str.lower, str.upper, str.title]),
    before=st.sampled_from(["", "images_", "seg_"]),
    after=st.sampled_from(["", "set", "_set", " Data", "2017", "-images", "_1"]),
)
def test_the_usual_names_of_splits_are_known_in_any_case(
    word: tuple[str, str], case: object, before: str, after: str
) -> None:
    assert callable(case)
    assert split_named(case(before + word[1] + after)) == word[0]


@given(
    st.sampled_from(
        ["images", "cat", "contest", "latest", "strain", "train station", "test-dev", "2017", "", "évaluer"]
    )
)
def test_other_names_are_not_splits(name: str) -> None:
    assert split_named(name) is None


@given(st.text(min_size=1, max_size=8).filter(lambda name: "/" not in name and "\0" not in name))
def test_any_class_name_keeps_its_place_below_split_folders(name: str) -> None:
    folders = split_folders(ROOT, [Path("Train", name, "1.jpg"), Path("valid", name, "2.jpg"), Path("valid/x/3.jpg")])
    assert (folders.splits, folders.depth) == ({"Train": "train", "valid": "val"}, 1)


@pytest.mark.parametrize(
    ("names", "splits", "depth"),
    [
        (["cat/1.jpg", "dog/2.jpg"], {}, 0),
        (["1.jpg", "2.jpg"], {}, 0),
        (["x.jpg"], {}, 0),
        (["train/1.jpg"], {"train": "train"}, 1),
        (["photos/Training/cat/1.jpg", "photos/Testing/cat/1.jpg"], {"Training": "train", "Testing": "test"}, 2),
        (["animals/cat/1.jpg", "animals/dog/1.jpg"], {}, 1),
        (["animals/cat/1.jpg", "animals/1.jpg"], {}, 0),
        (["seg_train/seg_train/a/1.jpg", "seg_test/seg_test/a/1.jpg"], {"seg_train": "train", "seg_test": "test"}, 2),
        (["bus/1.jpg", "car/1.jpg", "train/1.jpg"], {}, 0),
        (
            ["dev/a/1.jpg", "train/a/1.jpg", "validation/a/2.jpg"],
            {"dev": "val", "train": "train", "validation": "val"},
            1,
        ),
    ],
)
def test_folders_around_splits_and_classes_are_seen_through(
    names: list[str], splits: dict[str, str], depth: int
) -> None:
    folders = split_folders(ROOT, paths(*names))
    assert (folders.splits, folders.depth) == (splits, depth)


@pytest.mark.parametrize(
    "stray", ["preview.png", "cat/1.jpg", "other/cat/1.jpg", "trainstation/1.jpg"], ids=lambda name: name
)
@pytest.mark.parametrize("splits", [("train", "val"), ("TRAIN",), ("training", "valid", "testing")])
def test_a_stray_beside_split_folders_is_named(stray: str, splits: tuple[str, ...]) -> None:
    files = paths(stray, *(f"{name}/{kind}/1.jpg" for name in splits for kind in ("cat", "dog")))
    with pytest.raises(DataError, match=f"photos/{stray}: is outside the folders? {' and '.join(splits)}"):
        split_folders(ROOT, files)


def test_a_folder_named_like_a_split_may_be_a_class() -> None:
    assert split_folders(ROOT, paths("bus/a/1.jpg", "train/b/1.jpg"), classes=["bus", "train"]).splits == {}


def test_hidden_and_system_files_are_left_alone_and_counted(tmp_path: Path) -> None:
    for name in (
        "cat/1.jpg",
        "cat/._1.jpg",
        ".ipynb_checkpoints/1.jpg",
        "__MACOSX/cat/1.jpg",
        "@eaDir/2.jpg",
        "Thumbs.db",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    left_alone = LeftAlone()
    assert files_below(tmp_path, left_alone) == [tmp_path / "cat/1.jpg"]
    (line,) = left_alone.lines()
    assert line.startswith("5 hidden or system files (") and line.endswith(", ...)")


@given(st.text(min_size=1, max_size=20))
def test_a_name_is_hidden_by_its_dot_alone_or_by_a_system(name: str) -> None:
    assert is_system_name(f".{name}") and is_system_name("__MACOSX") and not is_system_name(f"a{name}")


@pytest.mark.parametrize(
    "name",
    ["a b/фото é.JPG", "a b/фото é.jpg", "a b\\фото é.jpg", "images/a b/фото é.jpg", "images\\a b\\фото é.jpg",
     "/home/me/a b/фото é.jpg", "C:\\data\\a b\\фото é.jpg",
     unicodedata.normalize("NFD", "a b/фото é.jpg"), "a b/фото é"],
)  # fmt: skip
def test_a_listed_name_is_found_as_another_system_wrote_it(tmp_path: Path, name: str) -> None:
    file = tmp_path / "images/a b/фото é.JPG"
    file.parent.mkdir(parents=True)
    file.touch()
    listed = ListedFiles(tmp_path / "images")
    assert listed.find(name, "list", [".png", ".jpg"]) == file
    assert bool(listed.notice()) == (name != "a b/фото é.JPG")


@pytest.mark.parametrize("name", ["b/1.jpg", "../1.jpg", "/etc/passwd", "", "2.jpg", "other/1.jpg"])
def test_a_listed_name_never_stands_for_another_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "images/a").mkdir(parents=True)
    (tmp_path / "images/1.jpg").touch()
    with pytest.raises(DataError, match="^list.json: .*(does not exist; restore it|is outside)"):
        ListedFiles(tmp_path / "images").find(name, "list.json")


def test_of_two_names_that_differ_in_case_neither_stands_for_a_third(tmp_path: Path) -> None:
    for name in ("x.jpg", "X.jpg"):
        (tmp_path / name).touch()
    if len(os.listdir(tmp_path)) == 2:
        listed = ListedFiles(tmp_path)
        assert listed.find("X.jpg", "list") == tmp_path / "X.jpg"
        with pytest.raises(DataError, match="does not exist"):
            listed.find("x.JPG", "list")


@given(number=st.integers(1, 60), fraction=st.floats(0, 0.99), seed=st.integers(0, 3))
def test_small_sets_hold_out_the_fraction_and_at_least_one(number: int, fraction: float, seed: int) -> None:
    chosen = held_out(seed, [f"{i}.jpg" for i in range(number)], fraction)
    assert len(chosen) < number
    assert len(chosen) == min(max(round(fraction * number), int(fraction > 0)), number - 1)


def test_in_large_sets_a_sample_stays_in_its_split_when_others_are_added() -> None:
    names = [str(i) for i in range(2 * MIN_HASHED_SAMPLES)]
    assert held_out(0, names, 0.1) & set(names[:MIN_HASHED_SAMPLES]) == held_out(0, names[:MIN_HASHED_SAMPLES], 0.1)
