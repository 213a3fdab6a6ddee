"""Checkpoints in another place: a real S3-compatible server, or a folder; that fails, goes away, and comes back."""

import json
import logging
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from mtgen.checkpointing import checkpoint
from mtgen.checkpointing.checkpoint import METRICS_KEY, checkpoint_folders, save, verify
from mtgen.checkpointing.mirror import CheckpointStore, Mirror, restore
from mtgen.checkpointing.retention import BestCriterion, Retention
from mtgen.errors import CheckpointError, ConfigError, DataError
from mtgen.storage import source
from mtgen.storage.source import RetryPolicy

TWO = Retention(2)


def write(root: Path, images: int, keep: Retention = TWO, accuracy: float = 0.5) -> Path:
    tensors = {"ema": {"weight": torch.full((1000,), float(images))}}
    return save(root, images, tensors, {"images": images, METRICS_KEY: {"test/x": accuracy}}, "", keep)


def digest(folder: Path) -> str:
    return checkpoint.digest(verify(folder).tensors("ema"))


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        source, "RETRY_POLICY", RetryPolicy(attempts=3, first=0.01, longest=0.05, stall=1.0, total=20.0)
    )


class S3:
    """A server on loopback that can be told to answer 503, and to go away and come back.

    Attributes:
        failing: how many of the next uploads are answered by a 503.
    """

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.failing = 0
        self._app = DomainDispatcherApplication(create_backend_app)
        self.come_back()

    def _answer(self, environ: Any, start: Any) -> Any:
        if self.failing and environ["REQUEST_METHOD"] == "PUT":
            self.failing -= 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("503 Service Unavailable", [("Content-Length", "0")])
            return []
        return self._app(environ, start)

    def come_back(self) -> None:
        self._server = make_server("127.0.0.1", self.port, self._answer, threaded=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def go_away(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    server = S3()
    variables = {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y", "DEFAULT_REGION": "us-east-1", "MAX_ATTEMPTS": "1"}
    for name, value in {**variables, "ENDPOINT_URL": f"http://127.0.0.1:{server.port}"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 1)
    files = fsspec.filesystem("s3")
    if files.exists("bucket"):  # the server's content is the process's
        files.rm("bucket", recursive=True)
    files.mkdir("bucket")
    yield server
    server.go_away()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(params=["s3", "folder", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        request.getfixturevalue("s3")
        return "s3://bucket/runs"
    return str(tmp_path / "far") if request.param == "folder" else f"file://{tmp_path}/far"


def mirrored(url: str, root: Path, keep: Retention = TWO) -> list[str]:
    """Bring the place up to date; what went wrong."""
    said: list[str] = []
    mirror = Mirror(CheckpointStore(url, "run"), root, keep, said.append)
    mirror.notify()
    mirror.close()
    return said


def test_what_is_copied_comes_back_into_an_empty_folder(url: str, tmp_path: Path) -> None:
    for images in (100, 200):
        write(tmp_path / "here", images)
    assert mirrored(url, tmp_path / "here") == []
    assert restore(CheckpointStore(url, "run"), tmp_path / "new", warn=pytest.fail) == 200
    assert digest(tmp_path / "new" / f"{200:012d}") == digest(tmp_path / "here" / f"{200:012d}")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"{200:012d}"]


@pytest.mark.usefixtures("s3")
def test_what_a_store_logs_of_its_own_is_not_among_a_runs_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for name in ("botocore", "aiobotocore"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    write(tmp_path / "here", 100)
    assert mirrored("s3://bucket/runs", tmp_path / "here") == []
    assert [record.name for record in caplog.records if "boto" in record.name] == []


def test_there_the_same_stay_as_here_and_the_best_survives_the_loss_of_the_folder(url: str, tmp_path: Path) -> None:
    keep = Retention(1, best=BestCriterion("test/x"))
    for images, accuracy in ((100, 0.9), (200, 0.5), (300, 0.6)):
        write(tmp_path / "here", images, keep, accuracy)
        assert mirrored(url, tmp_path / "here", keep) == []
    assert CheckpointStore(url, "run").names() == [f"{100:012d}", f"{300:012d}"]
    shutil.rmtree(tmp_path / "here")
    restore(CheckpointStore(url, "run"), tmp_path / "here", warn=pytest.fail)
    write(tmp_path / "here", 400, keep, 0.7)
    assert mirrored(url, tmp_path / "here", keep) == []
    assert CheckpointStore(url, "run").names() == [f"{100:012d}", f"{400:012d}"]


def test_a_checkpoint_that_is_written_again_is_copied_again(url: str, tmp_path: Path) -> None:
    write(tmp_path / "here", 100, accuracy=0.1)
    assert mirrored(url, tmp_path / "here") == []
    write(tmp_path / "here", 100, accuracy=0.2)
    assert mirrored(url, tmp_path / "here") == []
    restore(CheckpointStore(url, "run"), tmp_path / "new", warn=pytest.fail)
    assert checkpoint.snapshot_metrics(tmp_path / "new" / f"{100:012d}") == {"test/x": 0.2}


def test_where_nothing_is_nothing_comes_back(url: str, tmp_path: Path) -> None:
    assert restore(CheckpointStore(url, "run"), tmp_path / "new", warn=pytest.fail) is None


def test_a_few_503_are_waited_out(s3: S3, tmp_path: Path) -> None:
    write(tmp_path / "here", 100)
    s3.failing = 2
    assert mirrored("s3://bucket/runs", tmp_path / "here") == []
    assert (
        s3.failing == 0
        and restore(CheckpointStore("s3://bucket/runs", "run"), tmp_path / "new", warn=pytest.fail) == 100
    )


def test_a_server_that_only_answers_503_is_named_and_tried_again_with_the_next_checkpoint(
    s3: S3, tmp_path: Path
) -> None:
    write(tmp_path / "here", 100)
    s3.failing = 10**9
    (said,) = mirrored("s3://bucket/runs", tmp_path / "here")
    assert "s3://bucket/runs/run/" in said and "Training goes on" in said and "attempts" in said
    s3.failing = 0
    write(tmp_path / "here", 200)
    assert mirrored("s3://bucket/runs", tmp_path / "here") == []
    assert CheckpointStore("s3://bucket/runs", "run").names() == [f"{100:012d}", f"{200:012d}"]


def test_a_server_that_goes_away_and_comes_back_has_everything_in_the_end(s3: S3, tmp_path: Path) -> None:
    said: list[str] = []
    mirror = Mirror(CheckpointStore("s3://bucket/runs", "run"), tmp_path / "here", TWO, said.append)
    write(tmp_path / "here", 100)
    s3.go_away()
    with pytest.raises(DataError, match="s3://bucket/runs/run"):
        mirror.sync()
    s3.come_back()
    write(tmp_path / "here", 200)
    mirror.notify()
    mirror.close()
    assert said == [] and CheckpointStore("s3://bucket/runs", "run").names() == [f"{100:012d}", f"{200:012d}"]


def test_with_the_server_away_an_empty_folder_begins_nothing_anew(s3: S3, tmp_path: Path) -> None:
    s3.go_away()
    with pytest.raises(CheckpointError, match="not known: start again when the store answers"):
        restore(CheckpointStore("s3://bucket/runs", "run"), tmp_path / "new", warn=pytest.fail)
    s3.come_back()


def test_half_an_upload_is_passed_over(url: str, tmp_path: Path) -> None:
    for images in (100, 200):
        write(tmp_path / "here", images)
    assert mirrored(url, tmp_path / "here") == []
    CheckpointStore(url, "run").remove(f"{200:012d}/manifest.json")
    said: list[str] = []
    assert restore(CheckpointStore(url, "run"), tmp_path / "new", said.append) == 100
    assert len(said) == 1 and f"{200:012d}" in said[0] and "interrupted" in said[0]


def test_a_flipped_byte_there_is_found_and_named(tmp_path: Path) -> None:
    for images in (100, 200):
        write(tmp_path / "here", images)
    assert mirrored(str(tmp_path / "far"), tmp_path / "here") == []
    spoiled = tmp_path / "far" / "run" / f"{200:012d}" / "ema.safetensors"
    spoiled.write_bytes(spoiled.read_bytes()[:-1] + b"x")
    said: list[str] = []
    assert restore(CheckpointStore(str(tmp_path / "far"), "run"), tmp_path / "new", said.append) == 100
    assert len(said) == 1 and str(spoiled) in said[0] and "SHA-256" in said[0]
    assert [folder.name for folder in checkpoint_folders(tmp_path / "new")] == [f"{100:012d}"]


def test_a_manifest_that_names_files_elsewhere_is_damaged(tmp_path: Path) -> None:
    write(tmp_path / "here", 100)
    assert mirrored(str(tmp_path / "far"), tmp_path / "here") == []
    manifest = tmp_path / "far" / "run" / f"{100:012d}" / "manifest.json"
    about = json.loads(manifest.read_text())
    about["files"]["../../../owned"] = about["files"].pop("ema.safetensors")
    manifest.write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match="no checkpoint is whole there"):
        restore(CheckpointStore(str(tmp_path / "far"), "run"), tmp_path / "new", warn=lambda text: None)
    assert not list(tmp_path.rglob("owned"))


def test_a_full_disk_in_its_place_stops_nothing(tmp_path: Path) -> None:
    write(tmp_path / "here", 100)
    (tmp_path / "far").touch()  # where a folder should be
    (said,) = mirrored(str(tmp_path / "far"), tmp_path / "here")
    assert str(tmp_path / "far") in said and "Training goes on" in said


@pytest.mark.parametrize(
    "address", ["pipe:cat", "http://a/b", "ssh://host/x", "simplecache::s3://a/b", "|rm x", "github://a:b@c/d"]
)
def test_an_address_that_is_not_written_to_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="checkpoint.mirror=.*commands are never run"):
        CheckpointStore(address, "run")
