"""Checkpoints on a real disk: damaged ones are named and not used, good ones are never lost."""

import ast
import errno
import fcntl
import hashlib
import json
import os
import pickle
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtgen.checkpointing import checkpoint
from mtgen.checkpointing.averaged_weights import tensor_digest
from mtgen.checkpointing.checkpoint import latest, save, verify
from mtgen.checkpointing.retention import Retention
from mtgen.errors import CheckpointError, TrainingError
from mtgen.launchers.driver import run_lock

FILES = [
    "config.yaml",
    "discriminator.safetensors",
    "ema.safetensors",
    "generator.safetensors",
    "manifest.json",
    "state.json",
]


def tensors(seed: int, size: int = 16) -> dict[str, dict[str, Tensor]]:
    """Three small groups of tensors, like those of a run."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: {"parameter/weight": torch.randn(size, 4, generator=random)}
        for name in ("generator", "discriminator", "ema")
    }


def write(root: Path, images: int, keep: int = 3, size: int = 16) -> Path:
    return save(root, images, tensors(images, size), {"images": images}, "name: test\n", Retention(keep))


def names(root: Path) -> list[str]:
    """Everything in the folder of checkpoints, including hidden files."""
    return sorted(path.name for path in root.iterdir())


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A folder with two good checkpoints: the folder, the older, the newer."""
    return tmp_path, write(tmp_path, 100), write(tmp_path, 200)


def flip_bit(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_a_saved_checkpoint_is_loaded_exactly(tmp_path: Path) -> None:
    found = verify(write(tmp_path, 100))
    for name, group in tensors(100).items():
        assert tensor_digest(found.tensors(name)) == tensor_digest(group)
    assert (found.images, found.state, found.config()) == (100, {"images": 100}, "name: test\n")


@pytest.mark.parametrize("damage", [flip_bit, truncate, Path.unlink], ids=["one bit flipped", "truncated", "missing"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    two: tuple[Path, Path, Path], name: str, damage: Callable[[Path], None]
) -> None:
    root, older, newer = two
    assert sorted(path.name for path in newer.iterdir()) == FILES
    damage(newer / name)
    warnings: list[str] = []
    found = latest(root, warnings.append)
    assert found is not None and found.folder == older
    (warning,) = warnings
    assert str(newer) in warning and name in warning and older.name in warning


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("whole"), 100, size=1)


@given(name=st.sampled_from(FILES), at=st.integers(min_value=0), bit=st.integers(0, 7))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_flipped_bit_goes_unnoticed(whole: Path, name: str, at: int, bit: int) -> None:
    path = whole / name
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[at % len(content)] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        with pytest.raises(CheckpointError):
            verify(whole)
    finally:
        path.write_bytes(content)
    verify(whole)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"format": 1}', '{"format": 1, "images": 200, "files": []}', "\x00" * 64]
)
def test_an_invalid_manifest_is_named(two: tuple[Path, Path, Path], content: str) -> None:
    _, _, newer = two
    (newer / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match="manifest.json"):
        verify(newer)


def test_a_manifest_is_that_of_its_own_checkpoint(two: tuple[Path, Path, Path]) -> None:
    _, older, newer = two
    (newer / "manifest.json").write_text('{"format": 1, "images": 200, "files": {}}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="manifest.json"):
        verify(newer)
    shutil.copy(older / "manifest.json", newer / "manifest.json")
    with pytest.raises(CheckpointError, match="another checkpoint"):
        verify(newer)


def test_an_unsupported_format_is_named(two: tuple[Path, Path, Path]) -> None:
    _, _, newer = two
    manifest = json.loads((newer / "manifest.json").read_text(encoding="utf-8"))
    (newer / "manifest.json").write_text(json.dumps({**manifest, "format": 99}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="format 99.*reads format 1"):
        verify(newer)


def test_if_all_are_damaged_one_error_names_each(two: tuple[Path, Path, Path]) -> None:
    root, older, newer = two
    flip_bit(older / "ema.safetensors")
    truncate(newer / "state.json")
    with pytest.raises(CheckpointError) as caught:
        latest(root, warn=pytest.fail)
    assert str(older / "ema.safetensors") in str(caught.value) and str(newer / "state.json") in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_without_checkpoints_there_is_no_latest(tmp_path: Path) -> None:
    assert latest(tmp_path / "nothing", warn=pytest.fail) is None
    (tmp_path / "notes").mkdir()
    assert latest(tmp_path, warn=pytest.fail) is None


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for images in (100, 200, 300, 400):
        write(tmp_path, images, keep=2)
    assert names(tmp_path) == ["000000000300", "000000000400"]


def test_a_damaged_newer_one_does_not_displace_those_of_a_run_that_resumed_before_it(
    two: tuple[Path, Path, Path],
) -> None:
    root, _, newer = two
    truncate(newer / "state.json")
    write(root, 150, keep=1)
    assert names(root) == ["000000000150"]
    verify(root / "000000000150")


def test_a_damaged_one_is_replaced_when_the_run_reaches_it_again(two: tuple[Path, Path, Path]) -> None:
    root, _, newer = two
    truncate(newer / "state.json")
    write(root, 200)
    verify(newer)


def test_leftovers_of_a_killed_process_are_never_used_and_removed_with_the_next_checkpoint(
    two: tuple[Path, Path, Path],
) -> None:
    root, _, newer = two
    leftover = root / ".000000000250.partial"
    shutil.copytree(newer, leftover)
    found = latest(root, warn=pytest.fail)
    assert found is not None and found.folder == newer
    write(root, 300)
    assert names(root) == ["000000000100", "000000000200", "000000000300"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate disk of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small_files(tmp_path: Path) -> Iterator[Path]:
    """A folder, with a limit of 64 KiB per file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("folder", ["small_disk", "small_files"])
def test_on_a_full_disk_earlier_checkpoints_are_kept_and_the_error_names_folder_and_remedy(
    folder: str, request: pytest.FixtureRequest
) -> None:
    root = request.getfixturevalue(folder) / "checkpoints"
    write(root, 100)
    with pytest.raises(CheckpointError) as caught:
        write(root, 200, keep=1, size=100_000)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert str(root / "000000000200") in message and "free disk space" in message and "000000000100" in message
    assert names(root) == ["000000000100"]
    write(root, 300)  # with enough space, writing works again
    assert [verify(path).images for path in sorted(root.iterdir())] == [100, 300]


def test_a_folder_that_is_not_writable_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file/checkpoints"):
        write(tmp_path / "file" / "checkpoints", 100)
    with (
        pytest.raises(TrainingError, match="file/run: cannot be written .*another name"),
        run_lock(tmp_path / "file" / "run"),
    ):
        pytest.fail("the lock was given")


def test_a_run_folder_on_a_read_only_disk_is_refused(small_disk: Path) -> None:
    (small_disk / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(TrainingError, match="run: cannot be written .*another name"), run_lock(small_disk / "run"):
        pytest.fail("the lock was given")


def test_a_locked_run_names_the_process_that_has_the_lock(tmp_path: Path) -> None:
    with run_lock(tmp_path), pytest.raises(TrainingError, match=f"process {os.getpid()} on"), run_lock(tmp_path):
        pytest.fail("the lock was given twice")
    with run_lock(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    where = subprocess.run(
        ["stat", "--file-system", "--format=%T", tmp_path], capture_output=True, text=True, check=True
    ).stdout
    kind = where.split("/")[0].strip()  # stat says ext2/ext3 of ext4, too
    message = rf"cannot be locked.*{os.strerror(number)}.* {kind[:3]}\S* at /.*runs=FOLDER"
    with pytest.raises(TrainingError, match=message), run_lock(tmp_path):
        pytest.fail("the lock was given")


class Hostile:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("name", ["generator.safetensors", "state.json"])
def test_a_pickle_with_a_matching_manifest_is_an_error_and_not_run(
    name: str, two: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, newer = two
    monkeypatch.chdir(newer.parent)
    content = pickle.dumps(Hostile())
    (newer / name).write_bytes(content)
    manifest = json.loads((newer / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (newer / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"{name}: not a .*reads no other format"):
        verify(newer).tensors("generator")
    assert not Path("owned").exists()


def test_the_package_never_pickles() -> None:
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch.save", "torch.load"}
    for path in Path(checkpoint.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                used = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                used = {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Attribute):
                used = {ast.unparse(node)}
            else:
                continue
            assert not used & unsafe, f"{path}, line {node.lineno}"
