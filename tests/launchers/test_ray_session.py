"""The folder of a cluster of one's own: short enough for sockets, and removed; Ray Client's addresses are refused."""

import os
from pathlib import Path

import pytest

from mtgen.config import Config
from mtgen.errors import TrainingError
from mtgen.launchers.ray_cluster import ray_cluster
from mtgen.launchers.ray_session import MAX_SOCKET_PATH_BYTES, session_folder


def test_the_folder_is_in_the_one_for_temporary_files_and_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")  # noqa: S108 - short on every system
    with session_folder() as environment:
        folder = Path(environment["RAY_TMPDIR"])
        assert folder.parent == Path("/tmp")  # noqa: S108 - the same
        (folder / "ray").mkdir()
    assert not folder.exists()


def test_if_the_path_is_too_long_for_sockets_another_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    with session_folder() as environment:
        socket = "ray/session_2026-12-31_23-59-59_999999_4194304/sockets/plasma_store"
        assert len(os.fsencode(f"{environment['RAY_TMPDIR']}/{socket}")) <= MAX_SOCKET_PATH_BYTES
    assert not any(long.iterdir())


def test_an_address_of_ray_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.model_validate({"name": "run", "data": {"path": "data"}, "address": "ray://127.0.0.1:10001"})
    with pytest.raises(TrainingError, match=r"ray://127.0.0.1:10001: is an address of Ray Client.* HOST:6379"):
        ray_cluster(config).__enter__()
