"""An index in a store: built where the data is, found by every node with a few requests, and never half replaced."""

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from helpers.s3_server import S3, s3
from helpers.server import Server, serving

from mtgen.data.dataset_card import read_card_text
from mtgen.data.index import Index, open_index
from mtgen.data.index_file import IndexFile, ShardRecord, content_digest, write_index
from mtgen.data.index_store import index_dataset, user_index_path
from mtgen.data.index_table import SCHEMA, rows
from mtgen.data.key_hashes import DuplicateFinder
from mtgen.data.shard_files import Shards
from mtgen.errors import DataError
from mtgen.schema import DatasetCard
from mtgen.storage.source import open_source

__all__ = ["s3"]

URL = "s3://bucket/set"


@pytest.fixture
def server(numbered: Path) -> Iterator[Server]:
    """An HTTP server for the numbered data set."""
    with serving(numbered) as state:
        yield state


@pytest.fixture
def bucket(s3: S3, numbered: Path) -> S3:
    """An S3-compatible server with the numbered data set."""
    fsspec.filesystem("s3").put(str(numbered) + "/", "bucket/set/", recursive=True)
    s3.requests.clear()
    return s3


def another_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("MTGEN_CACHE", str(tmp_path / name))


def reads(index: Index) -> list[bytes]:
    return [index.read(i, "image") for i in range(len(index))]


def test_a_start_asks_for_the_card_and_at_most_once_per_node_for_the_index(
    numbered: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_dataset(numbered)
    local = open_index(numbered, "train")
    another_node(tmp_path, monkeypatch, "node")
    index = open_index(server.url, "train")
    assert sum(server.requests.values()) == 3 and not server.heads and not any(".tar" in n for n in server.requests)
    assert index.fingerprint == local.fingerprint
    text = read_card_text(open_source(numbered))
    server.requests.clear()
    for _ in range(8):  # the workers of the node, which got the card from the first worker of all
        open_index(server.url, "train", card_text=text)
    assert not server.requests and not server.heads
    assert reads(index) == reads(local)
    assert server.requests == {f"train-00000{i}.tar": 1 for i in range(2)} and not server.heads


def test_an_index_is_built_in_parts_and_kept_in_the_store(
    bucket: S3, numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = open_index(numbered, "train")
    for part in range(2):
        another_node(tmp_path, monkeypatch, f"builder {part}")
        index_dataset(URL, part=(part, 2))
    bucket.requests.clear()
    another_node(tmp_path, monkeypatch, "builder")
    index_dataset(URL)
    assert not [key for key in bucket.requests if key[0] == "GET" and key[1].endswith(".tar")]
    another_node(tmp_path, monkeypatch, "reader")
    bucket.requests.clear()
    index = open_index(URL, "train")
    assert sum(bucket.requests.values()) == 3
    assert index.fingerprint == local.fingerprint and [index.key(i) for i in range(60)] == [
        local.key(i) for i in range(60)
    ]
    kept = [path.rpartition("/")[2] for path in fsspec.filesystem("s3").find("bucket/set/index")]
    assert len(kept) == 3 and not [name for name in kept if "parts" in name]


def test_only_a_new_shard_is_read_when_a_store_is_indexed_again(
    bucket: S3, numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_dataset(URL)
    card = json.loads(fsspec.filesystem("s3").cat("bucket/set/dataset.json"))
    card["splits"]["train"] = {"samples": 67, "shards": ["train-{000000..000001}.tar", "more.tar"]}
    fsspec.filesystem("s3").pipe("bucket/set/dataset.json", json.dumps(card).encode())
    with pytest.raises(
        DataError, match=r"dataset\.json: was changed after the data set was indexed; run `mtgen shards i"
    ):
        open_index(URL, "train")
    fsspec.filesystem("s3").put(str(numbered / "test-000000.tar"), "bucket/set/more.tar")
    another_node(tmp_path, monkeypatch, "builder")
    bucket.requests.clear()
    index_dataset(URL)
    assert [key[1] for key in bucket.requests if key[0] == "GET" and key[1].endswith(".tar")] == ["bucket/set/more.tar"]
    assert len(open_index(URL, "train")) == 67


def test_a_missing_or_damaged_index_in_a_store_is_an_error_with_the_remedy(numbered: Path, server: Server) -> None:
    path = Path(index_dataset(numbered))
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(
        DataError, match=r"shards-.*: has another SHA-256 than dataset\.json names; run `mtgen shards ind"
    ):
        open_index(server.url, "train")
    path.unlink()
    with pytest.raises(DataError, match=r"shards-.*: is missing; run `mtgen shards index"):
        open_index(server.url, "train")


def test_an_http_server_is_indexed_in_the_cache(server: Server) -> None:
    assert Path(index_dataset(server.url)) == user_index_path(server.url)
    assert len(open_index(server.url, "train")) == 60
    with pytest.raises(DataError, match="cannot be written to, so parts cannot be kept there"):
        index_dataset(server.url, part=(0, 2))


def _index(folder: Path, cache: str) -> str:
    os.environ["MTGEN_CACHE"] = cache
    return index_dataset(folder)


def test_processes_of_several_nodes_that_index_at_once_do_no_harm(numbered: Path, tmp_path: Path) -> None:
    expected = open_index(numbered, "train").fingerprint
    with ProcessPoolExecutor(4) as pool:
        work = [pool.submit(_index, numbered, str(tmp_path / f"node {number}")) for number in range(4)]
        (path,) = {each.result() for each in work}
    assert len(list((numbered / "index").iterdir())) == 3 and Path(path).is_file()
    shutil.rmtree(user_index_path(numbered))
    assert open_index(numbered, "train").fingerprint == expected


def test_a_folder_that_cannot_be_written_to_uses_the_cache(numbered: Path) -> None:
    (numbered / "index").write_text("a file, where a folder has to be")
    with pytest.raises(DataError, match="index: the index cannot be written"):
        index_dataset(numbered)
    assert len(open_index(numbered, "train")) == 60


def test_an_index_of_many_shards_is_read_row_by_row(numbered: Path, tmp_path: Path) -> None:
    card = DatasetCard.model_validate_json((numbered / "dataset.json").read_bytes())
    table, _ = rows(numbered / "test-000000.tar", card)
    count, digest = 3000, content_digest(table)
    records = [ShardRecord(f"train-{n:06d}.tar", 10**9, str(n), len(table), digest, "0" * 64) for n in range(count)]
    written = write_index(
        tmp_path / "index", card.model_dump(mode="json"), "s3", {"train": records}, (table for _ in records), {}
    )
    file = IndexFile.open(tmp_path / "index", written)
    assert file is not None
    index = Index(Shards(open_source(numbered)), "train", card, file)
    assert len(index) == count * 7 and index.sizes.sum() == len(index)
    for i in (0, 6, 7, 10_500, len(index) - 1):
        assert index.shard(i) == f"train-{i // 7:06d}.tar" and index.key(i) == f"s{60 + i % 7:05d}"
        assert index.label[i] == table["label"][i % 7].as_py()


def test_the_columns_of_a_large_split_are_collected_in_files(
    numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = []
    for limit in (1 << 20, 4):
        monkeypatch.setattr("mtgen.data.index_file.ROWS_IN_MEMORY", limit)
        another_node(tmp_path, monkeypatch, f"with {limit}")
        open_index(numbered, "train")
        digests.append((user_index_path(numbered) / "latest").read_text())
    assert digests[0] == digests[1]


def test_repeated_hashes_are_found_in_files_as_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = np.random.default_rng(0).integers(0, 1 << 63, 2000, dtype=np.uint64) << np.uint64(1)
    expected = np.unique(hashes[[3, 700, 1999]])
    for limit in (1 << 24, 100):
        monkeypatch.setattr("mtgen.data.key_hashes.MAX_HASHES_IN_MEMORY", limit)
        every = np.concatenate([hashes, expected, expected[:1]])
        with DuplicateFinder() as finder:
            for part in np.array_split(every, 37):
                finder.add(part)
            found, numbers = finder.duplicates()
        assert np.array_equal(found, np.sort(np.concatenate([expected, expected, expected[:1]])))
        for value in expected:
            assert numbers[found == value].tolist() == np.flatnonzero(every == value).tolist()


def test_rows_have_a_hash_of_their_key(numbered: Path) -> None:
    card = DatasetCard.model_validate_json((numbered / "dataset.json").read_bytes())
    table, problems = rows(numbered / "test-000000.tar", card)
    assert not problems and table.schema == SCHEMA and len(pa.array(table["key_hash"].unique())) == 7
