"""Remote data: what servers do wrong, and what happens then."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from helpers.loading import load
from helpers.server import Server, serving

from mtgen.data.dataset_card import read_card
from mtgen.data.index import open_index
from mtgen.data.orders.lanes import Lanes
from mtgen.data.orders.policy import OrderPolicy
from mtgen.errors import ChangedShard, DataError, Unreachable
from mtgen.storage import remote_store, retries
from mtgen.storage.remote_store import RemoteStore, Version
from mtgen.storage.retries import RetryPolicy
from mtgen.storage.shard_cache import ShardCache, check_cache_folder
from mtgen.storage.source import absolute_location, open_source

Write = Callable[..., Path]
Sample = Callable[..., dict[str, Any]]
SHARD = "train-000000.tar"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = RetryPolicy(first=0.01, longest=0.05, stall=1.0, total=3.0, patience=0.4, warn_every=0.3)
    monkeypatch.setattr(retries, "RETRY_POLICY", policy)


@pytest.fixture
def server(numbered: Path) -> Iterator[Server]:
    """An HTTP server for the numbered data set."""
    with serving(numbered) as state:
        yield state


def shards(folder: Path | None = None) -> list[Path]:
    folder = folder or Path(os.environ["MTGEN_CACHE"]) / "shards"
    return sorted(path for path in folder.iterdir() if path.name != "lock" and not path.name.startswith("fetcher"))


def test_data_read_over_http_equals_that_of_the_folder(server: Server, numbered: Path) -> None:
    local, remote = open_index(numbered, "train"), open_index(server.url, "train")
    assert remote.remote and remote.fingerprint == local.fingerprint and len(remote) == 60
    assert [remote.read(i, "image") for i in range(60)] == [local.read(i, "image") for i in range(60)]


def test_a_store_in_memory_can_be_read(numbered: Path) -> None:
    fsspec.filesystem("memory").put(str(numbered), "/here", recursive=True)
    index = open_index("memory://here", "train")
    assert index.read(41, "image") == open_index(numbered, "train").read(41, "image")


def test_a_file_url_is_a_folder(numbered: Path) -> None:
    assert not open_index(f"file://{numbered}", "train").remote


def test_each_shard_is_downloaded_once_for_all_readers(server: Server) -> None:
    for _ in range(3):
        index = open_index(server.url, "train")
        assert all(index.read(i, "image") for i in range(60))
    assert [server.requests[f"train-00000{i}.tar"] for i in range(2)] == [1, 1]


@pytest.mark.parametrize("fault", [("status", 500), ("status", 503), ("dies", 700), ("short", 700), ("slow", 5)])
def test_transient_errors_are_retried(fault: tuple[str, float], server: Server) -> None:
    server.faults[SHARD] = [fault, fault]
    assert open_index(server.url, "train", patience=20).read(3, "image")
    assert server.requests[SHARD] == 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (("status!", 500), "the server answered 500"),
        (("dies!", 700), "cannot be read after"),
        (("short!", 700), "received 700 bytes"),
        (("slow!", 0.3), "cannot be read after"),
    ],
)
def test_a_server_that_keeps_failing_is_one_error_with_its_message(
    fault: tuple[str, float], message: str, server: Server
) -> None:
    server.faults[SHARD] = [fault]
    with pytest.raises(Unreachable) as raised:
        open_index(server.url, "train")
    assert str(raised.value).startswith(f"{server.url}/{SHARD}: cannot be read after") and message in str(raised.value)
    assert "check that the server is up" in str(raised.value)
    assert not [path for path in shards() if path.suffix]


@pytest.mark.parametrize("status", [403, 401])
def test_permanent_errors_are_not_retried(status: int, server: Server) -> None:
    server.faults[SHARD] = [("status!", status)]
    with pytest.raises(DataError, match=f"cannot be read: the server answered {status}.*access permissions"):
        open_index(server.url, "train")
    assert server.requests[SHARD] == 1


def test_a_missing_shard_is_named_as_in_a_folder(server: Server, numbered: Path) -> None:
    (numbered / SHARD).unlink()
    with pytest.raises(DataError, match=rf"{server.url}/{SHARD}: dataset.json names this shard"):
        open_index(server.url, "train")


def test_a_url_without_a_data_set(server: Server) -> None:
    with pytest.raises(DataError, match=r"nowhere/dataset\.json: the file does not exist"):
        read_card(f"{server.url}/nowhere")


def test_no_server() -> None:
    with pytest.raises(
        Unreachable,
        match=r"http://127\.0\.0\.1:9/dataset\.json: cannot be read after \d+ attempts in 0 s: .*server is up",
    ):
        read_card("http://127.0.0.1:9")


@pytest.mark.parametrize(
    "address",
    ["pipe:cat x", "pipe:curl http://a/b", "|cat x", "cmd:ls", "pipe://ls", "ssh://host/x", "simplecache::http://a/b"],
)
def test_a_url_that_could_run_a_command_is_refused(address: str) -> None:
    with pytest.raises(DataError, match="commands are never run"):
        open_index(address, "train")


@pytest.mark.parametrize(
    "name", ["pipe:cat x.tar", "|cat x.tar", "http://a/b.tar", "cmd:x.tar", "a::b.tar", "file:/x.tar"]
)
def test_a_shard_list_that_names_a_command_is_refused(name: str, write: Write, sample: Sample) -> None:
    folder = write({"train": [[sample(0)]]})
    (folder / "dataset.json").write_text(
        json.dumps({"name": "x", "splits": {"train": {"samples": 1, "shards": [name]}}})
    )
    with pytest.raises(DataError, match="is a URL or a command, not a file name"):
        open_index(folder, "train")


def test_a_missing_package_is_named_with_its_install_command() -> None:
    with pytest.raises(DataError, match="gs:// needs the package gcsfs: pip install gcsfs"):
        read_card("gs://bucket/set")


def test_a_url_is_the_same_in_every_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_location("https://a/b") == "https://a/b" and absolute_location("c") == str(tmp_path / "c")


def test_a_shard_that_changed_after_indexing_stops_with_the_remedy(server: Server, numbered: Path) -> None:
    index = open_index(server.url, "train")
    for path in shards():
        path.unlink()
    shard = numbered / SHARD
    data = bytearray(shard.read_bytes())
    data[data.index(b"IHDR") + 6] ^= 1
    shard.write_bytes(data)
    os.utime(shard, (1, 1))
    with pytest.raises(ChangedShard, match=rf"{SHARD}: changed since it was indexed; start again"):
        index.read(0, "image")
    with pytest.raises(DataError, match=f"{SHARD}: s00000: image"):
        open_index(server.url, "train")  # indexed again


def test_a_shard_replaced_by_one_of_another_size_is_named(server: Server, numbered: Path) -> None:
    index = open_index(server.url, "train", patience=30)
    for path in shards():
        path.unlink()
    (numbered / SHARD).write_bytes((numbered / "train-000001.tar").read_bytes())
    with pytest.raises(ChangedShard, match=rf"{SHARD}: changed since it was indexed \(it had [\d,]+ bytes and has"):
        index.read(0, "image")


def test_bytes_that_are_damaged_on_the_way_are_noticed(server: Server, numbered: Path) -> None:
    index = open_index(server.url, "train")
    for path in shards():
        path.unlink()
    shard, status = numbered / SHARD, (numbered / SHARD).stat()
    shard.write_bytes(bytes(status.st_size))
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ChangedShard, match=rf"{SHARD}: the bytes received differ from those that were indexed"):
        index.read(0, "image")


def test_a_store_that_is_away_for_a_while_is_waited_for(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    index = open_index(server.url, "train", patience=60)
    for path in shards():
        path.unlink()
    server.faults["*"] = [("status!", 503)]
    threading.Timer(1.0, server.faults.clear).start()
    assert index.read(3, "image")
    assert "the server answered 503" in caplog.text and "trying for up to 60 s (data.patience)" in caplog.text
    assert 1 <= len(caplog.records) <= 5


def test_a_busy_store_is_left_alone_as_long_as_it_asks(server: Server) -> None:
    server.faults["dataset.json"] = [("busy", 1)]
    assert RemoteStore(server.url, patience=30).read("dataset.json")
    assert server.times[1] - server.times[0] >= 0.9
    server.faults["dataset.json"] = [("busy", 100)]
    with pytest.raises(Unreachable, match="the server answered 503"):
        RemoteStore(server.url, patience=30).read("dataset.json")


def test_large_files_are_downloaded_in_parts(server: Server, numbered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_store, "RANGE_BYTES", 5000)
    size = (numbered / SHARD).stat().st_size
    server.faults[SHARD] = [("status", 503)]
    RemoteStore(server.url, patience=30).fetch(SHARD, size, numbered / "copy")
    assert (numbered / "copy").read_bytes() == (numbered / SHARD).read_bytes()
    assert server.ranges[SHARD] == -(-size // 5000) + 1, "only the part that failed is repeated"


def test_a_server_without_ranges_sends_whole_files(
    server: Server, numbered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_store, "RANGE_BYTES", 5000)
    monkeypatch.setattr(remote_store, "RANGES_AT_ONCE", 1)
    size = (numbered / SHARD).stat().st_size
    server.faults[SHARD] = [("slow!", 0)]
    store = RemoteStore(server.url)
    tried = []
    for _ in range(2):
        store.fetch(SHARD, size, numbered / "copy")
        assert (numbered / "copy").read_bytes() == (numbered / SHARD).read_bytes()
        tried.append(server.ranges[SHARD])
    assert 1 <= tried[0] == tried[1] <= 2, "ranges are tried once"


def test_bytes_in_flight_are_limited() -> None:
    budget, most, now, lock = remote_store.ByteBudget(100), [0], [0], threading.Lock()

    def use(count: int) -> None:
        with budget.reserve(count):
            with lock:
                now[0] += min(count, 100)
                most[0] = max(most[0], now[0])
            time.sleep(0.001)
            with lock:
                now[0] -= min(count, 100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, [30, 60, 1000, 10, 50, 50, 99, 1] * 5))
    assert 60 <= most[0] <= 100


@pytest.mark.parametrize(("kind", "network"), [("nfs4", True), ("lustre", True), ("ext4", False), ("overlay", False)])
def test_a_cache_on_a_network_file_system_is_refused_with_the_reason(kind: str, network: bool, tmp_path: Path) -> None:
    if network:
        with pytest.raises(DataError, match=rf"network file system \({kind}\).*evict each other's shards.*MTGEN_CACHE"):
            check_cache_folder(tmp_path, kind)
    else:
        check_cache_folder(tmp_path, kind)


def store_of(folder: Path, count: int, size: int) -> list[tuple[str, bytes]]:
    files = [(f"{i}.tar", os.urandom(size)) for i in range(count)]
    for name, data in files:
        (folder / name).write_bytes(data)
    return files


def opened(cache: ShardCache, store: RemoteStore, name: str) -> bytes:
    version = store.version(name)
    assert version is not None
    file = cache.open(store, name, version)
    return os.pread(file.descriptor, version.size + 1, 0)


def test_the_cache_respects_its_limit_and_evicts_the_least_recently_used(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    files = store_of(tmp_path / "far", 5, 1000)
    cache = ShardCache(tmp_path / "near", 3000)
    with serving(tmp_path / "far") as server:
        store = RemoteStore(server.url)
        for name, data in [*files[:3], files[0], *files[3:], files[0]]:
            assert opened(cache, store, name) == data
            assert sum(path.stat().st_size for path in shards(cache.folder)) <= 3000
        assert [server.requests[name] for name, _ in files] == [1, 1, 1, 1, 1]


def test_an_evicted_shard_stays_readable_while_it_is_open(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    files = store_of(tmp_path / "far", 3, 1000)
    cache = ShardCache(tmp_path / "near", 1000)
    with serving(tmp_path / "far") as server:
        store = RemoteStore(server.url)
        version = store.version("0.tar")
        assert version is not None
        held = cache.open(store, "0.tar", version)
        opened(cache, store, "1.tar")
        assert held.gone and os.pread(held.descriptor, 2000, 0) == files[0][1]


def test_a_shard_larger_than_the_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"x/a\.tar: has 2e-06 GB, more than data\.cache_gb=1e-06; raise data\.cache_gb"
    ):
        ShardCache(tmp_path, 1000).open(RemoteStore("http://x"), "a.tar", Version(2000, ""))


def test_threads_and_processes_download_a_shard_once(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    ((name, data),) = store_of(tmp_path / "far", 1, 300_000)
    with serving(tmp_path / "far") as server:
        server.faults[name] = [("slow", 0.002)]
        cache, store = ShardCache(tmp_path / "near", 10**6), RemoteStore(server.url)
        with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as processes, ThreadPoolExecutor(3) as threads:
            work = [pool.submit(opened, cache, store, name) for pool in (processes, threads) for _ in range(3)]
            assert all(each.result() == data for each in work)
        assert server.requests[name] == 1


DOWNLOAD = """
import sys
from pathlib import Path
from mtgen.storage.shard_cache import ShardCache
from mtgen.storage.remote_store import RemoteStore
store = RemoteStore(sys.argv[1])
ShardCache(Path(sys.argv[2]), 10**6).open(store, "0.tar", store.version("0.tar"))
"""


def test_a_killed_download_is_cleaned_up_and_repeated(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    files, near = store_of(tmp_path / "far", 2, 200_000), tmp_path / "near"
    with serving(tmp_path / "far") as server:
        server.faults["0.tar"] = [("slow", 0.05)]
        child = subprocess.Popen([sys.executable, "-c", DOWNLOAD, server.url, str(near)])
        while not (near.exists() and any(path.stat().st_size for path in shards(near))):
            assert child.poll() is None
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        child.wait()
        (left,) = shards(near)
        assert left.suffix == ".part"
        cache, store = ShardCache(near, 10**6), RemoteStore(server.url)
        assert opened(cache, store, "1.tar") == files[1][1] and not left.exists()
        assert opened(cache, store, "0.tar") == files[0][1]


def _open_on_a_full_disk(cache: ShardCache, url: str) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    store = RemoteStore(url)
    try:
        opened(cache, store, "0.tar")
    except DataError as error:
        return str(error)
    return "no error"


def test_a_full_disk_names_the_folder_and_the_remedies(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    store_of(tmp_path / "far", 1, 300_000)
    with serving(tmp_path / "far") as server, ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        message = pool.submit(_open_on_a_full_disk, ShardCache(tmp_path / "near", 10**6), server.url).result()
    assert message.startswith(
        f"{tmp_path / 'near'}: cannot store 0.tar (the disk is full); free disk space, set MTGEN_CACHE to another disk"
    )
    assert "data.cache_gb" in message and not shards(tmp_path / "near")


def test_a_child_reads_and_downloads_after_a_fork(server: Server) -> None:
    index = open_index(server.url, "train")
    expected = index.read(0, "image")
    shutil.rmtree(Path(os.environ["MTGEN_CACHE"]) / "shards")
    child = os.fork()
    if child == 0:
        os._exit(0 if index.read(0, "image") == expected and index.read(50, "image") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_loader_over_http_reads_every_sample_once_and_each_shard_once(server: Server) -> None:
    index = open_index(server.url, "train")
    shutil.rmtree(Path(os.environ["MTGEN_CACHE"]) / "shards")
    server.requests.clear()
    order = index.order(OrderPolicy("lanes", 5, window=10, lanes=Lanes(2, 5)))
    with load(index, batch_size=10, order=order) as loader:
        seen = [(next(loader).image[:, 0, 0, 0] * 127.5 + 127.5).round().int().tolist() for _ in range(6)]
    assert sorted(np.concatenate(seen)) == list(range(60))
    assert [server.requests[f"train-00000{i}.tar"] for i in range(2)] == [1, 1]


def test_2_and_then_3_workers_read_lanes_over_http_every_sample_once(server: Server) -> None:
    index = open_index(server.url, "train")
    order = index.order(OrderPolicy("lanes", 5, window=10, lanes=Lanes(6, 2)))
    seen = []
    for world, position, steps in ((2, 0, 2), (3, 24, 3)):
        for rank in range(world):
            with load(index, batch_size=12, order=order, rank=rank, world=world, position=position) as loader:
                seen += [(next(loader).image[:, 0, 0, 0] * 127.5 + 127.5).round().int() for _ in range(steps)]
    assert sorted(np.concatenate(seen)) == list(range(60))


def test_prefetching_downloads_shards_before_they_are_read(server: Server) -> None:
    index = open_index(server.url, "train")
    shutil.rmtree(Path(os.environ["MTGEN_CACHE"]) / "shards")
    index.prefetch(np.array([40]))
    end = time.monotonic() + 20
    while not (Path(os.environ["MTGEN_CACHE"]) / "shards").exists() or [p.suffix for p in shards()] != [""]:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_urls_and_folders_are_distinguished(tmp_path: Path) -> None:
    assert isinstance(open_source("https://a/b"), RemoteStore) and not open_source(tmp_path).remote


def test_a_url_in_a_configuration_is_left_alone(server: Server, tmp_path: Path) -> None:
    from mtgen.cli.common import load_config

    (tmp_path / "c.yaml").write_text("name: n\ndata: {mixture: [{path: 'https://h/b'}, {path: rel}]}\n")
    mixture = load_config(tmp_path / "c.yaml", []).data.mixture
    assert [source.path for source in mixture] == ["https://h/b", str(Path("rel").absolute())]
    (tmp_path / "c.yaml").write_text("name: n\ndata: {path: 's3://bucket/set'}\n")
    assert load_config(tmp_path / "c.yaml", []).data.path == "s3://bucket/set"
