"""Statistics of a data set are those of its samples."""

import io
import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from mtgen.cli import app
from mtgen.errors import DataError
from mtgen.shards.stats import stats, tables

CARD = {
    "name": "set",
    "classes": ["cat", "[red]dog", "bird"],
    "mask_classes": ["background", "cat"],
    "ignore_index": 254,
}


def picture(width: int = 4, height: int = 4, form: str = "PNG", values: Any = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.broadcast_to(np.array(values, np.uint8), (height, width)).copy()).save(file, form)
    return file.getvalue()


def wav(frames: int, rate: int = 8000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(bytes(2 * frames))
    return file.getvalue()


def flac(frames: int, rate: int = 16000, channels: int = 2) -> bytes:
    info = rate << 44 | (channels - 1) << 41 | 15 << 36 | frames
    return b"fLaC" + bytes([0x80, 0, 0, 34]) + bytes(10) + info.to_bytes(8, "big") + bytes(16)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(sample, ...)`: a data set of one split; a sample is `{suffix: bytes}`."""

    def written(*samples: dict[str, bytes]) -> Path:
        with webdataset.TarWriter(str(tmp_path / "train-0.tar"), encoder=False) as tar:
            for number, sample in enumerate(samples):
                tar.write({"__key__": f"{number:03d}", **sample})
        card = {**CARD, "splits": {"train": {"samples": len(samples), "shards": "train-0.tar"}}}
        (tmp_path / "dataset.json").write_text(json.dumps(card))
        return tmp_path

    return written


def test_classes_missing_labels_formats_and_sizes_are_counted(write: Callable[..., Path]) -> None:
    folder = write(
        {"png": picture(4, 8), "cls": b"1"}, {"jpg": picture(16, 8, "JPEG"), "cls": b"1"}, {"png": picture(6, 8)}
    )
    train = stats(folder)["train"]
    assert (train.samples, train.shards) == (3, 1) and train.missing["class"] == 1 and train.missing["sound"] == 3
    assert [(row.name, row.count, row.share) for row in train.classes] == [
        ("cat", 0, 0.0),
        ("[red]dog", 2, 1.0),
        ("bird", 0, 0.0),
    ]
    assert train.formats == {"png": 2, "jpeg": 1}
    assert train.width is not None and (train.width.min, train.width.median, train.width.max) == (4, 6, 16)
    assert train.aspect is not None and (train.aspect.min, train.aspect.max) == (0.5, 2)
    assert train.mask == [] and train.boxes is None and train.caption is None and train.sound is None


def test_fractions_of_mask_classes_are_of_the_known_pixels(write: Callable[..., Path]) -> None:
    known, partly = picture(values=[0, 0, 0, 1]), picture(values=[1, 1, 254, 255])
    train = stats(write({"png": picture(), "mask.png": known}, {"png": picture(), "mask.png": partly}))["train"]
    assert [(row.name, row.count, row.share) for row in train.mask] == [("background", 12, 0.5), ("cat", 12, 0.5)]
    assert train.unknown == 0.25


def test_an_unnamed_mask_value_is_shown(write: Callable[..., Path]) -> None:
    (*_, last) = stats(write({"png": picture(), "mask.png": picture(values=7)}))["train"].mask
    assert (last.number, last.name, last.share) == (7, "7 (unnamed)", 1.0)


def test_boxes_captions_and_sounds_are_measured(write: Callable[..., Path]) -> None:
    boxes = json.dumps({"boxes": [[0, 0, 2, 2, 0], [1, 1, 3, 3, 2]]}).encode()
    first = {"png": picture(), "json": boxes, "txt": "ein Wörtchen\n".encode(), "wav": wav(4000)}
    train = stats(
        write(
            first, {"png": picture(), "json": b'{"boxes": []}', "txt": b"cat", "flac": flac(32000)}, {"png": picture()}
        )
    )["train"]
    assert train.boxes is not None and (train.boxes.count, train.boxes.min, train.boxes.max) == (2, 0, 2)
    assert [row.count for row in train.box_classes] == [1, 0, 1]
    assert train.caption is not None and (train.caption.min, train.caption.max) == (3, 12)
    assert train.sound is not None and (train.sound.min, train.sound.max, train.sound.total) == (0.5, 2.0, 2.5)
    assert train.rates == {"8,000 Hz, 1 channel": 1, "16,000 Hz, 2 channels": 1}


def test_labels_are_counted_per_image_and_do_not_count_as_boxes(write: Callable[..., Path]) -> None:
    boxed = json.dumps({"boxes": [[0, 0, 2, 2, 0], [1, 1, 3, 3, 0]]}).encode()
    train = stats(
        write({"png": picture(), "json": boxed}, {"png": picture(), "json": b'{"labels": [0, 2]}'}, {"png": picture()})
    )["train"]
    assert [(row.count, round(row.share, 2)) for row in train.labels] == [(2, 0.67), (0, 0), (1, 0.33)]
    assert train.boxes is not None and (train.boxes.count, train.boxes.total) == (1, 2)


def test_damaged_components_are_counted_and_left_out(write: Callable[..., Path]) -> None:
    mask = picture().replace(b"IDAT", b"IDAT\xff\xff")
    bad = {"png": picture(), "mask.png": mask, "json": b"{", "txt": b"\xff", "wav": b"RIFF"}
    train = stats(write(bad, {"png": picture(), "txt": b"fine"}))["train"]
    assert train.damaged == {"mask": 1, "boxes": 1, "tags": 1, "caption": 1, "sound": 1}
    assert train.caption is not None and train.caption.count == 1


def test_tables_do_not_interpret_names_and_summarize_many_classes(write: Callable[..., Path]) -> None:
    folder = write({"png": picture(), "cls": b"1", "wav": wav(80)})
    card = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(card | {"classes": [*CARD["classes"], *map(str, range(60))]}))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(*tables(stats(folder)))
    text = console.export_text()
    assert (
        "[red]dog" in text
        and "and 23 less frequent ones, 62 of them with no samples" in text
        and "8,000 Hz, 1 channel: 1" in text
    )


def test_the_command_writes_the_same_statistics_as_json(write: Callable[..., Path]) -> None:
    folder = write({"png": picture(), "cls": b"1"})
    done = CliRunner().invoke(app, ["shards", "stats", str(folder), "--json", "-"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["train"]["classes"][1] == {"number": 1, "name": "[red]dog", "count": 1, "share": 1.0}
    checked = CliRunner().invoke(app, ["shards", "validate", str(folder), "--json", "-"])
    # with JSON on standard output, text goes to standard error
    assert json.loads(checked.stdout)["problems"] == [] and "no problems" in checked.stderr
    assert "no problems" in CliRunner().invoke(app, ["shards", "validate", str(folder)]).stdout


def test_samples_with_problems_are_left_out_and_counted(write: Callable[..., Path]) -> None:
    train = stats(write({"png": picture()}, {"png": b"x", "cls": b"0"}, {"png": picture(), "cls": b"7"}))["train"]
    assert train.samples == 1 and train.problems == {"image": 1, "class": 1}


def test_a_split_without_usable_samples_is_one_clear_error(write: Callable[..., Path]) -> None:
    folder = write({"png": picture()})
    shard = folder / "train-0.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(DataError, match=r"train-0.tar: truncated"):
        stats(folder)
