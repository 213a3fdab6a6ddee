"""`dataset.json`: what is wrong with it is said with its file and key."""

from pathlib import Path

import pytest

from mtgen.data.index import open_index
from mtgen.errors import DataError


def complaint(folder: Path) -> str:
    with pytest.raises(DataError) as raised:
        open_index(folder, "train")
    return str(raised.value)


def test_a_missing_folder(tmp_path: Path) -> None:
    assert f"{tmp_path / 'none'}: there is no such folder" in complaint(tmp_path / "none")


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "no dataset.json in this folder (the folder is empty)" in complaint(tmp_path)


def test_a_folder_without_a_card(numbered: Path) -> None:
    (numbered / "dataset.json").unlink()
    assert "no dataset.json in this folder (it has 3 tar files)" in complaint(numbered)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "invalid json"),
        ("[]", "dataset.json: file: "),
        ('{"splits": {}}', "name: field required"),
        ('{"name": "x", "splits": {}}', "splits: names no split"),
        ('{"name": "x", "splits": {"train": {"shards": "a.tar"}}}', "splits.train.samples: field required"),
        ('{"name": "x", "splits": {"train": {"samples": 1, "shards": []}}}', "splits.train.shards: names no shards"),
        ('{"name": "x", "splits": {"train": {"samples": 1, "shards": ""}}}', "splits.train.shards: names no shards"),
        ('{"name": "x", "splits": {"train": {"samples": 1, "shards": "../a.tar"}}}', "'../a.tar' lies outside"),
        ('{"name": "x", "splits": {"train": {"samples": 1, "shards": "/a.tar"}}}', "'/a.tar' lies outside"),
        ('{"name": "x", "splits": {"train": {"samples": 1, "shards": "a{0..1.tar"}}}', "unbalanced braces"),
        (
            '{"name": "x", "ignore_index": 300, "splits": {"train": {"samples": 1, "shards": "a.tar"}}}',
            "ignore_index=300",
        ),
    ],
)
def test_a_card_that_is_not_valid(text: str, says: str, numbered: Path) -> None:
    (numbered / "dataset.json").write_text(text)
    assert says in complaint(numbered)
