"""Training a tokenizer on the captions of a data set."""

import io
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from PIL import Image
from typer.testing import CliRunner

from mtgen.cli import app
from mtgen.data.tokenizer import open_tokenizer
from mtgen.errors import DataError
from mtgen.shards.tokenizer import train_tokenizer
from mtgen.shards.write import Sample, ShardWriter


def written(folder: Path, captions: list[str | None]) -> Path:
    with ShardWriter(folder, "captions") as shards:
        for number, caption in enumerate(captions):
            shards.write("train", Sample(f"{number:04d}", np.zeros((8, 8, 3), np.uint8), caption=caption))
        shards.write("test", Sample("x", np.zeros((8, 8, 3), np.uint8)))
    return folder


CAPTIONS = [
    f"a {size} {color} {shape}"
    for size in ("small", "large")
    for color in ("red", "blue")
    for shape in ("star", "ring")
]


def test_frequent_words_are_single_tokens(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path, tokenizer = train_tokenizer(
        str(written(tmp_path / "set", [*CAPTIONS, None])), progress=lambda done, total: seen.append((done, total))
    )
    assert path == tmp_path / "set" / "tokenizer.json" and seen == [(n, 8) for n in range(1, 9)]
    assert np.count_nonzero(tokenizer.encode("a small red star", 64)) == 4
    assert np.count_nonzero(tokenizer.encode("star", 64)) == 1  # the same token at any position in the caption
    assert open_tokenizer(str(path)).digest == tokenizer.digest
    read = tokenizers.Tokenizer.from_file(str(path))
    unseen = "ein rotes ☆"
    assert read.decode([n - 1 for n in tokenizer.encode(unseen, 64).tolist() if n]).strip() == unseen


def test_the_same_captions_give_the_same_file(tmp_path: Path) -> None:
    folder = str(written(tmp_path / "set", list(CAPTIONS)))
    one, other = (
        train_tokenizer(folder, out=tmp_path / name)[0].read_bytes() for name in ("one/t.json", "other/t.json")
    )
    assert one == other


def test_the_vocabulary_is_limited(tmp_path: Path) -> None:
    folder = str(written(tmp_path / "set", list(CAPTIONS)))
    assert train_tokenizer(folder, 257)[1].vocabulary == 257 < train_tokenizer(folder, 265)[1].vocabulary == 265
    with pytest.raises(DataError, match="--vocabulary=256: bytes and padding alone need 257"):
        train_tokenizer(folder, 256)


def test_a_split_without_captions_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sample of split 'test' has a caption"):
        train_tokenizer(str(written(tmp_path / "set", list(CAPTIONS))), split="test")


def test_a_caption_that_is_not_utf8_names_its_sample(tmp_path: Path) -> None:
    folder, file = tmp_path / "set", io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    with ShardWriter(folder, "captions") as shards:
        shards.write("train", Sample("good", np.zeros((8, 8, 3), np.uint8), caption="x"))
        shards.copy("train", "bad", {"png": file.getvalue(), "txt": b"caf\xe9"})
    with pytest.raises(DataError, match=r"train-000000\.tar: bad: caption: not UTF-8 at byte 3"):
        train_tokenizer(str(folder))
    assert not (folder / "tokenizer.json").exists()


def test_a_url_needs_a_file_to_write_to() -> None:
    with pytest.raises(DataError, match="--out FILE"):
        train_tokenizer("http://127.0.0.1:1/set")


def test_the_command_names_the_file_it_wrote(tmp_path: Path) -> None:
    folder = written(tmp_path / "set", list(CAPTIONS))
    found = CliRunner().invoke(app, ["shards", "tokenizer", str(folder), "--vocabulary", "300"])
    assert found.exit_code == 0 and f"data.tokenizer={folder}/tokenizer.json" in found.output.replace("\n", "")
