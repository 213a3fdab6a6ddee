"""Errors of `dataset.json` name the file and the key."""

from pathlib import Path

import pytest

from mtgen.data.index import open_index
from mtgen.errors import DataError


def error_message(folder: Path) -> str:
    with pytest.raises(DataError) as raised:
        open_index(folder, "train")
    return str(raised.value)


def test_a_missing_folder(tmp_path: Path) -> None:
    assert f"{tmp_path / 'none'}: the folder does not exist" in error_message(tmp_path / "none")


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "no dataset.json in this folder (the folder is empty)" in error_message(tmp_path)


def test_a_folder_without_a_card(numbered: Path) -> None:
    (numbered / "dataset.json").unlink()
    assert "no dataset.json in this folder (3 tar files); `mtgen shards describe" in error_message(numbered)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "invalid json"),
        ("[]", "dataset.json: file: "),
        ('{"splits": {}}', "name: field required"),
        ('{"name": "x", "splits": {}}', "splits: is empty"),
        ('{"name": "x", "splits": {"train": {"shards": "a.tar"}}}', "splits.train.samples: field required"),
        ('{"name": "x", "splits": {"train": {"samples": 1, "shards": []}}}', "splits.train.shards: names no shards"),
        ('{"name": "x", "splits": {"train": {"samples": 1, "shards": ""}}}', "splits.train.shards: names no shards"),
        ('{"name": "x", "splits": {"train": {"samples": 1, "shards": "../a.tar"}}}', "'../a.tar' is outside"),
        ('{"name": "x", "splits": {"train": {"samples": 1, "shards": "/a.tar"}}}', "'/a.tar' is outside"),
        ('{"name": "x", "splits": {"train": {"samples": 1, "shards": "a{0..1.tar"}}}', "unbalanced braces"),
        (
            '{"name": "x", "ignore_index": 300, "splits": {"train": {"samples": 1, "shards": "a.tar"}}}',
            "ignore_index=300",
        ),
    ],
)
def test_an_invalid_card(text: str, message: str, numbered: Path) -> None:
    (numbered / "dataset.json").write_text(text)
    assert message in error_message(numbered)
