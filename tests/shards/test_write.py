"""The writer: samples are read back as written, the bytes are reproducible, and nothing incomplete is left behind."""

import fcntl
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import wave
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mtgen.data import key_hashes
from mtgen.data.index import open_index
from mtgen.data.index_store import index_dataset
from mtgen.errors import DataError
from mtgen.schema import DatasetCard
from mtgen.shards import split_writer
from mtgen.shards.write import Sample, ShardWriter

CLASSES = ["circle", "square"]
MASKS = ["background", *CLASSES]


def plain(key: str, **components: object) -> Sample:
    return Sample(key, np.full((6, 8, 3), 90, np.uint8), **components)


def write(folder: Path, samples: list[Sample], **options: object) -> None:
    with ShardWriter(folder, "test", CLASSES, MASKS, **options) as writer:
        for sample in samples:
            writer.write("train", sample)


def read(folder: Path, decode: bool = True) -> list[dict]:
    card = DatasetCard.model_validate_json((folder / "dataset.json").read_text())
    data = webdataset.WebDataset(str(folder / str(card.splits["train"].shards)), shardshuffle=False)
    return list(data.decode("pil") if decode else data)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@st.composite
def samples(draw: st.DrawFn, key: str) -> Sample:
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    shape = draw(st.sampled_from([(height, width), (height, width, 3)]))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    box = [left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height)), draw(st.integers(0, 1))]
    return Sample(
        key,
        draw(arrays.arrays(np.uint8, shape)),
        label=draw(st.none() | st.integers(0, 1)),
        mask=draw(st.none() | arrays.arrays(np.uint8, (height, width), elements=st.sampled_from([0, 1, 2, 255]))),
        boxes=draw(st.sampled_from([None, [], [box]])),
        labels=draw(st.sampled_from([None, [], [1], [0, 1]])),
        caption=draw(st.none() | st.text(st.characters(codec="utf-8"))),
        sound=draw(st.none() | st.tuples(arrays.arrays(np.int16, st.integers(1, 50)), st.just(8000))),
    )


@given(st.tuples(samples("a"), samples("b"), samples("c")))
def test_webdataset_reads_the_samples_as_written(
    tmp_path_factory: pytest.TempPathFactory, written: tuple[Sample, ...]
) -> None:
    folder = tmp_path_factory.mktemp("shards") / "set"
    write(folder, list(written), samples_per_shard=2)
    for sample, found in zip(written, read(folder), strict=True):
        assert found["__key__"] == sample.key
        channels = np.asarray(found["png"])  # webdataset decodes to RGB
        assert np.array_equal(
            channels, sample.image if sample.image.ndim == 3 else np.repeat(sample.image[..., None], 3, 2)
        )
        assert found.get("cls") == sample.label
        assert ("mask.png" in found) == (sample.mask is not None)
        if sample.mask is not None:
            assert np.array_equal(np.asarray(found["mask.png"])[..., 0], sample.mask)
        assert found.get("txt") == sample.caption
        annotation = found.get("json", {})
        assert (annotation.get("boxes"), annotation.get("labels")) == (sample.boxes, sample.labels)
        if annotation:
            assert (annotation["height"], annotation["width"]) == sample.image.shape[:2]
    for sample, stored in zip(written, read(folder, decode=False), strict=True):
        assert ("wav" in stored) == (sample.sound is not None)
        if sample.sound is not None:
            with wave.open(io.BytesIO(stored["wav"])) as sound:
                assert sound.getparams()[:3] == (1, 2, 8000)
                assert np.array_equal(np.frombuffer(sound.readframes(1000), "<i2"), sample.sound[0])


def test_the_size_of_shards_is_limited_and_the_card_counts_samples(tmp_path: Path) -> None:
    with ShardWriter(
        tmp_path / "set", "mine", CLASSES, MASKS, source="drawn", licence="CC0", samples_per_shard=3, colour="red"
    ) as writer:
        for i in range(7):
            writer.write("train", plain(f"a{i}"))
            writer.write("test", plain(f"b{i}")) if i < 2 else None
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [
        "dataset.json",
        "test-000000.tar",
        "train-000000.tar",
        "train-000001.tar",
        "train-000002.tar",
    ]
    assert json.loads((tmp_path / "set/dataset.json").read_text()) == {
        "name": "mine",
        "classes": CLASSES,
        "mask_classes": MASKS,
        "ignore_index": 255,
        "source": "drawn",
        "licence": "CC0",
        "splits": {
            "train": {"samples": 7, "shards": "train-{000000..000002}.tar"},
            "test": {"samples": 2, "shards": "test-{000000..000000}.tar"},
        },
        "colour": "red",
    }


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, [plain("a", label=1, caption="ein Würfel", labels=[1])])
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (plain("a.b"), "its key may only have"),
        (plain("a", label=2), "it has class 2; possible: 0 to 1"),
        (plain("a", labels=[-1]), "it has class -1"),
        (plain("a", boxes=[[0, 0, 4, 4, 7]]), "it has class 7"),
        (plain("a", boxes=[[0, 0, 9, 4, 0]]), r"its box \[0, 0, 9, 4, 0\] is not .* inside an image of 8x6"),
        (plain("a", boxes=[[3, 0, 3, 4, 0]]), r"its box \[3, 0, 3, 4, 0\] is not"),
        (plain("a", boxes=[[3, 0, 4, 4]]), r"its box \[3, 0, 4, 4\] is not"),
        (
            plain("a", mask=np.zeros((8, 6), np.uint8)),
            r"its mask is uint8 \[8, 6\]; possible: integers \[6, 8\]",
        ),
        (plain("a", mask=np.full((6, 8), 3)), "its mask has class 3; possible: 0 to 2"),
        (plain("a", sound=(np.zeros(5, np.float32), 8000)), "its sound is float32"),
        (Sample("a", np.zeros((6, 8, 4), np.uint8)), r"its image is uint8 \[6, 8, 4\]"),
        (Sample("a", np.zeros((6, 8), np.float32)), r"its image is float32 \[6, 8\]"),
        (plain("seen"), "another sample has the same key"),
    ],
)
def test_an_invalid_sample_is_named(tmp_path: Path, sample: Sample, message: str) -> None:
    with pytest.raises(DataError, match=rf"set, sample '{sample.key}' of train: .*{message}"):
        write(tmp_path / "set", [plain("seen"), sample])
    assert list(tmp_path.iterdir()) == []


def test_an_invalid_split_name_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="split '../train' is not a valid name"),
        ShardWriter(tmp_path / "set", "mine") as writer,
    ):
        writer.write("../train", plain("a"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_refused_and_unchanged(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/letter.txt").write_text("dear")
    for overwrite, reason in (
        (False, "is not empty; choose another folder"),
        (True, "has no dataset.json, so it is not a data set"),
    ):
        with pytest.raises(DataError, match=f"set: {reason}"):
            write(tmp_path / "set", [plain("a")], overwrite=overwrite)
    assert [path.name for path in tmp_path.rglob("*")] == ["set", "letter.txt"]


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("dear")
    with pytest.raises(DataError, match="set: is a file"):
        write(tmp_path / "set", [plain("a")])
    assert (tmp_path / "set").read_text() == "dear"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write(tmp_path / "set", [plain("a")])
    assert [sample["__key__"] for sample in read(tmp_path / "set")] == ["a"]


def test_overwriting_replaces_the_whole_data_set(tmp_path: Path) -> None:
    write(tmp_path / "set", [plain("a"), plain("b")], samples_per_shard=1)
    write(tmp_path / "set", [plain("c")], overwrite=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["dataset.json", "set", "train-000000.tar"]
    assert [sample["__key__"] for sample in read(tmp_path / "set")] == ["c"]


def test_overwriting_replaces_the_index_too(tmp_path: Path) -> None:
    write(tmp_path / "set", [plain("a")])
    index_dataset(tmp_path / "set")
    write(tmp_path / "set", [plain("b"), plain("c")], overwrite=True)
    assert not (tmp_path / "set/index").exists() and len(open_index(tmp_path / "set", "train")) == 2


def test_a_shard_is_full_at_a_size_in_bytes_and_a_number_of_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_writer, "MIN_SAMPLES_PER_SHARD", 3)
    samples = [plain(f"{number:02d}") for number in range(20)]
    for size, least in ((1, 3), (100_000, 3), (10**9, 20)):
        monkeypatch.setattr(split_writer, "SHARD_BYTES", size)
        write(tmp_path / str(size), samples)
        shards = sorted((tmp_path / str(size)).glob("*.tar"))
        assert [sample["__key__"] for sample in read(tmp_path / str(size))] == [sample.key for sample in samples]
        assert all(shard.stat().st_size >= min(size, 10_000) for shard in shards[:-1])
        with tarfile.open(shards[0]) as tar:
            assert len({name.partition(".")[0] for name in tar.getnames()}) >= least


def test_keys_are_unique_among_more_than_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_hashes, "MAX_RECENT_KEYS", 4)
    names = [f"{number:02d}" for number in range(10)]
    write(tmp_path / "set", [plain(name) for name in names], samples_per_shard=3)
    with pytest.raises(DataError, match="sample '01' of train: another sample has the same key; rename one"):
        write(tmp_path / "other", [plain(name) for name in [*names, "01"]], samples_per_shard=3)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_files_that_do_not_belong_to_the_data_set_are_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "set", [plain("a")])
    (tmp_path / "set/photos").mkdir()
    (tmp_path / "set/photos/x.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match="set: photos does not belong to the data set and would be lost"):
        write(tmp_path / "set", [plain("b")], overwrite=True)
    assert (tmp_path / "set/photos/x.jpg").read_bytes() == b"mine" and read(tmp_path / "set")[0]["__key__"] == "a"


def test_a_failed_overwrite_keeps_the_old_data_set(tmp_path: Path) -> None:
    write(tmp_path / "set", [plain("a")])
    before = digests(tmp_path / "set")
    with pytest.raises(DataError, match="it has class 9"):
        write(tmp_path / "set", [plain("b"), plain("c", label=9)], overwrite=True)
    assert digests(tmp_path / "set") == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_data_set_without_a_sample_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sample was written"):
        write(tmp_path / "set", [])
    assert list(tmp_path.iterdir()) == []


WRITER = """
import os, signal, sys, resource
import numpy as np
from mtgen.shards import split_writer
from mtgen.shards.write import Sample, ShardWriter
image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
with ShardWriter(sys.argv[1], "test", samples_per_shard=2) as writer:
    for i in range(5):
        writer.write("train", Sample(str(i), image))
    {then}
"""


def run_writer(folder: Path, then: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WRITER.format(then=then), str(folder)], capture_output=True, text=True, timeout=120
    )


def test_a_killed_writer_leaves_no_data_set_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    killed = run_writer(tmp_path / "set", "os.kill(os.getpid(), signal.SIGKILL)")
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "set").exists()
    write(tmp_path / "set", [plain("a")])
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert [sample["__key__"] for sample in read(tmp_path / "set")] == ["a"]


def test_a_writer_that_dies_while_overwriting_does_not_lose_the_old_data_set(tmp_path: Path) -> None:
    write(tmp_path / "set", [plain("a")])
    # an overwriting writer renames the old data set to this before it renames the new one
    (tmp_path / "set").rename(tmp_path / ".set.replaced")
    with pytest.raises(DataError, match="is not empty"):
        write(tmp_path / "set", [plain("b")])
    assert [sample["__key__"] for sample in read(tmp_path / "set")] == ["a"]


def test_a_full_disk_is_named_and_nothing_is_left_behind(tmp_path: Path) -> None:
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); writer.write('train', Sample('a', image)); "
    refused = run_writer(tmp_path / "set", limit + "writer.write('train', Sample('b', image))")
    assert refused.returncode == 1
    assert (
        refused.stderr.splitlines()[-1]
        == f"mtgen.errors.DataError: {tmp_path / 'set'}: cannot be written (File too large); "
        "free space or choose another folder"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_process_is_writing_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".set.partial").mkdir()
    lock = os.open(tmp_path / ".set.partial", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with pytest.raises(DataError, match="another process is writing it"):
            write(tmp_path / "set", [plain("a")])
    finally:
        os.close(lock)
    write(tmp_path / "set", [plain("a")])
    assert [sample["__key__"] for sample in read(tmp_path / "set")] == ["a"]


def test_the_root_of_the_file_system_is_refused() -> None:
    with pytest.raises(DataError, match="/: is the root of the file system; choose a folder in it"):
        ShardWriter("/", "toy")
