"""Data sets written to a store: shard by shard, complete or not there, resumable, and never mixed with another."""

import json
import os
from pathlib import Path

import fsspec
import pytest
from helpers.s3_server import S3, s3

from mtgen.data.index import open_index
from mtgen.data.index_store import index_dataset
from mtgen.errors import DataError, Unreachable
from mtgen.shards.make import BadSamples, make
from mtgen.shards.split import split
from mtgen.shards.store_draft import MARKER
from mtgen.shards.write import Sample, ShardWriter
from mtgen.storage import retries

__all__ = ["s3"]

SHAPES = {"seed": 3, "samples_per_shard": 7, "train": 20, "test": 5}
SHARDS = ["test-000000.tar", "train-000000.tar", "train-000001.tar", "train-000002.tar"]


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store in memory, and an empty cache."""
    monkeypatch.setenv("MTGEN_CACHE", str(tmp_path / "cache"))
    return f"memory://{tmp_path.name}/set"


def names(url: str) -> list[str]:
    fs, path = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    return sorted(name.rpartition("/")[2] for name in fs.find(path))


def content(url: str, name: str) -> bytes:
    fs, path = fsspec.core.url_to_fs(url)
    return fs.cat(f"{path}/{name}")


def check_same(folder: Path, url: str) -> None:
    """The store has the shards of the folder, the same card, and an index."""
    shards = sorted(path.name for path in folder.glob("*.tar"))
    assert [name for name in names(url) if not name.endswith(".arrow")] == ["dataset.json", *shards]
    assert all(content(url, name) == (folder / name).read_bytes() for name in shards)
    card = json.loads(content(url, "dataset.json"))
    digest = card.pop("index")
    assert card == json.loads((folder / "dataset.json").read_text()) and f"shards-{digest[:16]}.arrow" in names(url)
    for part in card["splits"]:
        assert open_index(url, part).fingerprint == open_index(folder, part).fingerprint


def nothing_is_left(tmp_path: Path) -> bool:
    return not list((tmp_path / "cache/drafts").iterdir())


def test_a_data_set_is_made_in_s3_with_its_index(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTGEN_CACHE", str(tmp_path / "cache"))
    make("shapes", tmp_path / "set", **SHAPES)
    make("shapes", "s3://bucket/set", processes=2, **SHAPES)
    assert not [name for method, name in s3.requests if method == "GET" and name.endswith(".tar")]
    check_same(tmp_path / "set", "s3://bucket/set")
    assert nothing_is_left(tmp_path)


def test_a_store_that_stops_answering_pauses_the_work_and_the_same_call_resumes(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTGEN_CACHE", str(tmp_path / "cache"))
    make("shapes", tmp_path / "set", **SHAPES)

    def fail(done: int, total: int) -> None:
        s3.failures = 100 if done >= 14 else 0

    with monkeypatch.context() as patch:
        patch.setattr(retries, "RETRY_POLICY", retries.RetryPolicy(patience=0.0))
        with pytest.raises(Unreachable, match=r"s3://bucket/set/train-000002\.tar: cannot be written after 1 attempts"):
            make("shapes", "s3://bucket/set", progress=fail, **SHAPES)
    s3.failures = 0
    assert {"train-000000.tar", "train-000001.tar", MARKER} <= set(names("s3://bucket/set"))
    assert "dataset.json" not in names("s3://bucket/set")
    s3.requests.clear()
    make("shapes", "s3://bucket/set", **SHAPES)
    put = sorted(name.rpartition("/")[2] for method, name in s3.requests if method == "PUT" and name.endswith(".tar"))
    assert put == ["test-000000.tar", "train-000002.tar"]
    check_same(tmp_path / "set", "s3://bucket/set")


def test_a_data_set_is_complete_even_if_its_index_cannot_be_written(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(location: str) -> None:
        raise Unreachable(f"{location}: no answer")

    with monkeypatch.context() as patch:
        patch.setattr("mtgen.shards.store_draft.index_dataset", away)
        with pytest.raises(
            Unreachable, match=r"set is complete but for its index; to make it: `mtgen shards index mem"
        ):
            make("shapes", url, **SHAPES)
    assert nothing_is_left(tmp_path) and MARKER not in names(url)
    make("shapes", tmp_path / "set", **SHAPES)
    index_dataset(url)
    check_same(tmp_path / "set", url)


def interrupt(url: str, **options: object) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make("shapes", url, progress=stop, **{**SHAPES, **options})


def test_what_another_command_of_this_system_left_is_replaced(url: str, tmp_path: Path) -> None:
    make("shapes", tmp_path / "set", **SHAPES)
    interrupt(url, seed=4, samples_per_shard=2)
    assert {MARKER, "train-000004.tar"} <= set(names(url))
    make("shapes", url, **SHAPES)
    check_same(tmp_path / "set", url)


def test_what_a_command_of_another_system_left_is_resumed_by_the_same_one_alone(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("shapes", tmp_path / "set", **SHAPES)
    interrupt(url)
    monkeypatch.setenv("MTGEN_CACHE", str(tmp_path / "cache of another system"))
    before = names(url)
    with pytest.raises(DataError, match="another command is writing here, or was interrupted on another system"):
        make("shapes", url, **{**SHAPES, "seed": 4})
    assert names(url) == before
    make("shapes", url, **SHAPES)
    check_same(tmp_path / "set", url)


def test_shards_that_disappeared_meanwhile_are_made_again(url: str, tmp_path: Path) -> None:
    make("shapes", tmp_path / "set", **SHAPES)
    interrupt(url)
    fs, path = fsspec.core.url_to_fs(url)
    fs.rm(f"{path}/train-000000.tar")
    make("shapes", url, **SHAPES)
    check_same(tmp_path / "set", url)


def test_two_commands_at_once_do_not_make_a_mixture(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs, path = fsspec.core.url_to_fs(url)

    def another(done: int, total: int) -> None:
        if done == 14:
            fs.pipe(f"{path}/{MARKER}", b"another command")

    with pytest.raises(DataError, match="another command has begun to write here"):
        make("shapes", url, progress=another, **SHAPES)
    assert "dataset.json" not in names(url)


def test_samples_are_written_and_split_as_in_a_folder(url: str, tmp_path: Path) -> None:
    make("shapes", tmp_path / "in", train=20, test=0)
    index = open_index(tmp_path / "in", "train")
    for location in (tmp_path / "written", f"{url}/written"):
        with ShardWriter(location, "mine", index.card.classes, samples_per_shard=3) as writer:
            for i in range(8):
                writer.write("train", Sample(index.key(i), index.read(i, "image"), label=0))
    for location in (tmp_path / "split", f"{url}/split"):
        split(tmp_path / "in", location, {"train": 0.5, "test": 0.5})
    check_same(tmp_path / "written", f"{url}/written")
    check_same(tmp_path / "split", f"{url}/split")
    assert nothing_is_left(tmp_path)


def test_a_failed_writer_leaves_nothing_in_the_store(url: str, tmp_path: Path) -> None:
    image = open_index(make_shapes(tmp_path), "train").read(0, "image")
    with (
        pytest.raises(DataError, match="it has class 9"),
        ShardWriter(url, "mine", ["a"], samples_per_shard=1) as writer,
    ):
        for key, label in (("a", 0), ("b", 0), ("c", 9)):
            writer.write("train", Sample(key, image, label=label))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/broken.png").write_bytes(image[:-20])
    with pytest.raises(BadSamples):
        make("folder", url, images=str(tmp_path / "in"), test=0)
    assert names(url) == [] and nothing_is_left(tmp_path)


def make_shapes(tmp_path: Path) -> Path:
    make("shapes", tmp_path / "made", train=1, test=0)
    return tmp_path / "made"


def test_repeated_keys_are_found_in_uploaded_shards(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtgen.data.key_hashes.MAX_RECENT_KEYS", 2)
    image = open_index(make_shapes(tmp_path), "train").read(0, "image")
    with (
        pytest.raises(DataError, match="sample 'a' of train: another sample has the same key"),
        ShardWriter(url, "mine", samples_per_shard=1) as writer,
    ):
        for key in ("a", "b", "c", "a"):
            writer.write("train", Sample(key, image))
    assert names(url) == []


def test_what_is_in_a_store_is_never_overwritten(url: str, tmp_path: Path) -> None:
    make("shapes", url, train=2, test=0)
    before = names(url)
    with pytest.raises(DataError, match="set: is not empty; choose another URL"):
        make("shapes", url, train=3, test=0)
    with pytest.raises(DataError, match="a data set in a store cannot be overwritten at once"):
        make("shapes", url, train=3, test=0, overwrite=True)
    with pytest.raises(DataError, match="an HTTP server cannot be written to; give a folder, or the URL of a store"):
        make("shapes", "https://host/set", train=3, test=0)
    assert names(url) == before


def test_a_system_writes_to_a_url_once_at_a_time(url: str, tmp_path: Path) -> None:
    def again(done: int, total: int) -> None:
        with pytest.raises(DataError, match="another process is writing it; wait for it, or choose another URL"):
            make("shapes", url, train=2, test=0)

    make("shapes", url, train=2, test=0, progress=again)
    assert os.listdir(tmp_path / "cache/drafts") == []
