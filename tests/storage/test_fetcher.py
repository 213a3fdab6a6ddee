"""One process per node downloads for all others, whoever starts and ends first."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from helpers.server import Server, serving

from mtgen.errors import ChangedShard
from mtgen.storage.fetcher import Fetcher
from mtgen.storage.remote_store import RemoteStore, Version
from mtgen.storage.shard_cache import ShardCache, file_sha256

FILES = 3


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server with three files of 100 kB."""
    (tmp_path / "far").mkdir()
    for number in range(FILES):
        (tmp_path / "far" / f"{number}.tar").write_bytes(os.urandom(100_000))
    with serving(tmp_path / "far") as state:
        yield state


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    """An empty cache, in a folder whose path is too long for a socket."""
    return ShardCache(tmp_path / ("near" * 30), 10**6)


def version(tmp_path: Path, number: int) -> tuple[str, Version, str]:
    path = tmp_path / "far" / f"{number}.tar"
    return path.name, Version(path.stat().st_size, "tag"), file_sha256(path)


def fetchers(cache: ShardCache) -> list[psutil.Process]:
    """The processes that listen for a cache."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "mtgen.storage.fetcher" in words and str(cache.folder) in words:
            found.append(process)
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


def wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not until():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_one_process_serves_all_clients_and_ends_after_the_last(
    server: Server, cache: ShardCache, tmp_path: Path
) -> None:
    store = RemoteStore(server.url)
    clients = [Fetcher(cache.folder) for _ in range(2)]
    for client in clients:
        for number in range(FILES):
            name, expected, sha256 = version(tmp_path, number)
            file = client.fetch(cache, store, name, expected, sha256)
            assert os.pread(file.descriptor, 200_000, 0) == (tmp_path / "far" / name).read_bytes()
    assert sum(server.requests.values()) == FILES and sum(server.heads.values()) == 0
    assert len(fetchers(cache)) == 1
    clients.pop().close()
    clients.pop().close()
    wait(lambda: not fetchers(cache))


READ = """
import sys, time
from pathlib import Path
from mtgen.storage.fetcher import Fetcher
from mtgen.storage.remote_store import RemoteStore, Version
from mtgen.storage.shard_cache import ShardCache
cache, client = ShardCache(Path(sys.argv[1]), 10**6), Fetcher(Path(sys.argv[1]))
client.fetch(cache, RemoteStore(sys.argv[2]), "0.tar", Version(100_000, "tag"), "")
print("fetched", flush=True)
time.sleep(60)
"""


def test_the_process_ends_when_a_killed_trainer_was_its_last_client(server: Server, cache: ShardCache) -> None:
    command = [sys.executable, "-c", READ, str(cache.folder), server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None and trainer.stdout.readline() == "fetched\n"
        assert len(fetchers(cache)) == 1
        trainer.send_signal(signal.SIGKILL)
    wait(lambda: not fetchers(cache))


def test_a_killed_fetcher_is_started_again(server: Server, cache: ShardCache, tmp_path: Path) -> None:
    store, client = RemoteStore(server.url), Fetcher(cache.folder)
    client.fetch(cache, store, *version(tmp_path, 0))
    (first,) = fetchers(cache)
    first.kill()
    client.fetch(cache, store, *version(tmp_path, 1))
    (second,) = fetchers(cache)
    assert second.pid != first.pid


def test_shards_are_fetched_ahead_of_their_use(server: Server, cache: ShardCache, tmp_path: Path) -> None:
    client, shards = Fetcher(cache.folder), [version(tmp_path, number) for number in range(FILES)]
    client.fetch_ahead(cache, RemoteStore(server.url), shards)
    wait(lambda: all(cache.path(RemoteStore(server.url), name, own).exists() for name, own, _ in shards))
    client.fetch_ahead(cache, RemoteStore(server.url), shards)
    assert sum(server.requests.values()) == FILES


def test_errors_keep_their_kind(server: Server, cache: ShardCache, tmp_path: Path) -> None:
    name, own, _ = version(tmp_path, 0)
    with pytest.raises(ChangedShard, match=rf"{server.url}/{name}: changed since it was indexed"):
        Fetcher(cache.folder).fetch(cache, RemoteStore(server.url), name, own, "0" * 64)
