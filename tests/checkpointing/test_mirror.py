"""Mirrored checkpoints on a real S3-compatible server or in a folder, through failures, outages and recovery."""

import json
import logging
import shutil
from pathlib import Path

import fsspec
import pytest
import torch
from helpers.s3_server import S3, s3

from mtgen.checkpointing import checkpoint
from mtgen.checkpointing.averaged_weights import tensor_digest
from mtgen.checkpointing.checkpoint import METRICS_KEY, checkpoint_folders, save, verify
from mtgen.checkpointing.mirror import CheckpointStore, Mirror, restore
from mtgen.checkpointing.retention import BestCriterion, Retention
from mtgen.errors import CheckpointError, ConfigError, DataError
from mtgen.storage import retries
from mtgen.storage.retries import RetryPolicy

__all__ = ["s3"]

TWO = Retention(2)


def write(root: Path, images: int, keep: Retention = TWO, accuracy: float = 0.5) -> Path:
    tensors = {"ema": {"weight": torch.full((1000,), float(images))}}
    return save(root, images, tensors, {"images": images, METRICS_KEY: {"test/x": accuracy}}, "", keep)


def digest(folder: Path) -> str:
    return tensor_digest(verify(folder).tensors("ema"))


@pytest.fixture(autouse=True)
def short_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        retries, "RETRY_POLICY", RetryPolicy(first=0.01, longest=0.05, stall=1.0, total=20.0, patience=0.3)
    )


@pytest.fixture(params=["s3", "folder", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        request.getfixturevalue("s3")
        return "s3://bucket/runs"
    return str(tmp_path / "far") if request.param == "folder" else f"file://{tmp_path}/far"


def mirrored(url: str, root: Path, keep: Retention = TWO) -> list[str]:
    """Update the mirror; returns its warnings."""
    warnings: list[str] = []
    mirror = Mirror(CheckpointStore(url, "run"), root, keep, warnings.append)
    mirror.notify()
    mirror.close()
    return warnings


def test_mirrored_checkpoints_are_restored_to_an_empty_folder(url: str, tmp_path: Path) -> None:
    for images in (100, 200):
        write(tmp_path / "here", images)
    assert mirrored(url, tmp_path / "here") == []
    assert restore(CheckpointStore(url, "run"), tmp_path / "new", warn=pytest.fail) == 200
    assert digest(tmp_path / "new" / f"{200:012d}") == digest(tmp_path / "here" / f"{200:012d}")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"{200:012d}"]


@pytest.mark.usefixtures("s3")
def test_log_messages_of_the_store_are_suppressed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for name in ("botocore", "aiobotocore"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    write(tmp_path / "here", 100)
    assert mirrored("s3://bucket/runs", tmp_path / "here") == []
    assert [record.name for record in caplog.records if "boto" in record.name] == []


def test_the_mirror_keeps_the_same_checkpoints_and_the_best_survives_the_loss_of_the_folder(
    url: str, tmp_path: Path
) -> None:
    keep = Retention(1, best=BestCriterion("test/x"))
    for images, accuracy in ((100, 0.9), (200, 0.5), (300, 0.6)):
        write(tmp_path / "here", images, keep, accuracy)
        assert mirrored(url, tmp_path / "here", keep) == []
    assert CheckpointStore(url, "run").checkpoints() == [f"{100:012d}", f"{300:012d}"]
    shutil.rmtree(tmp_path / "here")
    restore(CheckpointStore(url, "run"), tmp_path / "here", warn=pytest.fail)
    write(tmp_path / "here", 400, keep, 0.7)
    assert mirrored(url, tmp_path / "here", keep) == []
    assert CheckpointStore(url, "run").checkpoints() == [f"{100:012d}", f"{400:012d}"]


def test_a_checkpoint_that_is_written_again_is_uploaded_again(url: str, tmp_path: Path) -> None:
    write(tmp_path / "here", 100, accuracy=0.1)
    assert mirrored(url, tmp_path / "here") == []
    write(tmp_path / "here", 100, accuracy=0.2)
    assert mirrored(url, tmp_path / "here") == []
    restore(CheckpointStore(url, "run"), tmp_path / "new", warn=pytest.fail)
    assert checkpoint.snapshot_metrics(tmp_path / "new" / f"{100:012d}") == {"test/x": 0.2}


def test_an_empty_mirror_restores_nothing(url: str, tmp_path: Path) -> None:
    assert restore(CheckpointStore(url, "run"), tmp_path / "new", warn=pytest.fail) is None


def test_a_few_503_are_retried(s3: S3, tmp_path: Path) -> None:
    write(tmp_path / "here", 100)
    s3.failures = 2
    assert mirrored("s3://bucket/runs", tmp_path / "here") == []
    assert s3.failures == 0
    assert restore(CheckpointStore("s3://bucket/runs", "run"), tmp_path / "new", warn=pytest.fail) == 100


def test_a_server_that_always_answers_503_is_named_and_the_next_checkpoint_is_another_attempt(
    s3: S3, tmp_path: Path
) -> None:
    write(tmp_path / "here", 100)
    s3.failures = 10**9
    (warning,) = mirrored("s3://bucket/runs", tmp_path / "here")
    assert "s3://bucket/runs/run/" in warning and "Training continues" in warning and "attempts" in warning
    s3.failures = 0
    write(tmp_path / "here", 200)
    assert mirrored("s3://bucket/runs", tmp_path / "here") == []
    assert CheckpointStore("s3://bucket/runs", "run").checkpoints() == [f"{100:012d}", f"{200:012d}"]


def test_after_an_outage_the_server_has_all_checkpoints(s3: S3, tmp_path: Path) -> None:
    warnings: list[str] = []
    mirror = Mirror(CheckpointStore("s3://bucket/runs", "run"), tmp_path / "here", TWO, warnings.append)
    write(tmp_path / "here", 100)
    s3.stop()
    with pytest.raises(DataError, match="s3://bucket/runs/run"):
        mirror.sync()
    s3.start()
    write(tmp_path / "here", 200)
    mirror.notify()
    mirror.close()
    assert warnings == [] and CheckpointStore("s3://bucket/runs", "run").checkpoints() == [f"{100:012d}", f"{200:012d}"]


def test_during_an_outage_an_empty_folder_does_not_start_from_scratch(s3: S3, tmp_path: Path) -> None:
    s3.stop()
    with pytest.raises(CheckpointError, match="not known; start again when the store answers"):
        restore(CheckpointStore("s3://bucket/runs", "run"), tmp_path / "new", warn=pytest.fail)
    s3.start()


def test_an_incomplete_upload_is_skipped(url: str, tmp_path: Path) -> None:
    for images in (100, 200):
        write(tmp_path / "here", images)
    assert mirrored(url, tmp_path / "here") == []
    CheckpointStore(url, "run").remove(f"{200:012d}/manifest.json")
    warnings: list[str] = []
    assert restore(CheckpointStore(url, "run"), tmp_path / "new", warnings.append) == 100
    (warning,) = warnings
    assert f"{200:012d}" in warning and "interrupted" in warning


def test_a_flipped_byte_in_the_mirror_is_found_and_named(tmp_path: Path) -> None:
    for images in (100, 200):
        write(tmp_path / "here", images)
    assert mirrored(str(tmp_path / "far"), tmp_path / "here") == []
    damaged = tmp_path / "far" / "run" / f"{200:012d}" / "ema.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    warnings: list[str] = []
    assert restore(CheckpointStore(str(tmp_path / "far"), "run"), tmp_path / "new", warnings.append) == 100
    (warning,) = warnings
    assert str(damaged) in warning and "SHA-256" in warning
    assert [folder.name for folder in checkpoint_folders(tmp_path / "new")] == [f"{100:012d}"]


def test_a_manifest_that_names_files_outside_is_damaged(tmp_path: Path) -> None:
    write(tmp_path / "here", 100)
    assert mirrored(str(tmp_path / "far"), tmp_path / "here") == []
    manifest = tmp_path / "far" / "run" / f"{100:012d}" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["files"]["../../../owned"] = content["files"].pop("ema.safetensors")
    manifest.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="all checkpoints there are damaged"):
        restore(CheckpointStore(str(tmp_path / "far"), "run"), tmp_path / "new", warn=lambda text: None)
    assert not list(tmp_path.rglob("owned"))


def test_a_mirror_that_is_not_writable_does_not_stop_the_run(tmp_path: Path) -> None:
    write(tmp_path / "here", 100)
    (tmp_path / "far").touch()  # a file instead of the folder
    (warning,) = mirrored(str(tmp_path / "far"), tmp_path / "here")
    assert str(tmp_path / "far") in warning and "Training continues" in warning


@pytest.mark.parametrize(
    "url", ["pipe:cat", "http://a/b", "ssh://host/x", "simplecache::s3://a/b", "|rm x", "github://a:b@c/d"]
)
def test_an_unsupported_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="checkpoint.mirror=.*commands are never run"):
        CheckpointStore(url, "run")
