"""`mtgen checkpoints`: what there is, whether it is whole, and how to be rid of it without losing the last good one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from mtgen.checkpointing.averaged_weights import export_weights
from mtgen.checkpointing.checkpoint import METRICS_KEY, latest, list_checkpoints, prune, save, verify
from mtgen.checkpointing.retention import Retention
from mtgen.cli import app
from mtgen.errors import CheckpointError, TrainingError
from mtgen.launchers.driver import run_lock
from mtgen.models.loading import select_checkpoint

CARD = {"name": "toy"}


def ema(images: int) -> dict[str, torch.Tensor]:
    return {"generator/weight": torch.full((2, 3), float(images))}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with three good checkpoints."""
    root = tmp_path / "run" / "checkpoints"
    for images in (100, 200, 300):
        tensors = {
            "generator": {"parameter/w": torch.ones(1000)},
            "discriminator": {"parameter/w": torch.ones(4)},
            "ema": ema(images),
        }
        save(root, images, tensors, {"images": images, "card": CARD}, "name: run\n", Retention(3))
    return tmp_path / "run"


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A run that keeps the best of its checkpoints, which is neither the newest nor the oldest."""
    run = tmp_path / "measured"
    for images, accuracy in ((100, 0.5), (200, 0.9), (300, 0.7), (400, 0.8)):
        save(
            run / "checkpoints",
            images,
            {"ema": ema(images)},
            {"card": CARD, METRICS_KEY: {"test/x": accuracy}},
            "",
            Retention(4),
        )
    (run / "config.yaml").write_text("checkpoint: {keep: 1, best: {metric: test/x}}", encoding="utf-8")
    return run


def spoil(run: Path, images: int) -> Path:
    """Flip a byte, so that no size tells."""
    path = run / "checkpoints" / f"{images:012d}" / "generator.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return path


def names(run: Path) -> list[int]:
    return [entry.images for entry in list_checkpoints(run / "checkpoints", whole=False)]


def ask(*words: str) -> tuple[BaseException | None, str]:
    result = CliRunner().invoke(app, ["checkpoints", *words])
    return result.exception, result.output


def test_the_list_has_every_checkpoint_with_its_size(run: Path, tmp_path: Path) -> None:
    problem, said = ask("list", str(run), "--json", str(tmp_path / "list.json"))
    assert problem is None, said
    listed = json.loads((tmp_path / "list.json").read_text())
    assert [row["images"] for row in listed] == [100, 200, 300] and all(
        row["bytes"] > 4000 and row["problem"] is None for row in listed
    )


def test_a_flipped_byte_is_found_by_verify_alone_and_named(run: Path) -> None:
    path = spoil(run, 200)
    assert ask("list", str(run))[0] is None
    problem, _ = ask("verify", str(run))
    assert getattr(problem, "status", None) == 4 and str(path) in str(problem)


@pytest.mark.parametrize("name", ["ema.safetensors", "manifest.json"])
def test_a_missing_file_is_found_without_reading_all(run: Path, name: str) -> None:
    (run / "checkpoints" / f"{200:012d}" / name).unlink()
    problem, _ = ask("list", str(run))
    assert name in str(problem)


def test_pruning_keeps_the_newest(run: Path) -> None:
    problem, said = ask("prune", str(run), "--keep-last", "2")
    assert problem is None and names(run) == [200, 300], said


def test_pruning_counts_the_whole_ones_alone(run: Path) -> None:
    spoil(run, 300)
    removed = prune(run / "checkpoints", Retention(1))
    assert names(run) == [200] and [entry.images for entry in removed] == [100, 300]
    verify(run / "checkpoints" / f"{200:012d}")


def test_where_none_is_whole_none_is_removed(run: Path) -> None:
    for images in (100, 200, 300):
        spoil(run, images)
    with pytest.raises(CheckpointError, match="none is removed"):
        prune(run / "checkpoints", Retention(1))
    assert names(run) == [100, 200, 300]


def test_a_run_that_is_being_trained_is_not_pruned(run: Path) -> None:
    with run_lock(run):
        problem, _ = ask("prune", str(run), "--keep-last", "1")
    assert isinstance(problem, TrainingError) and names(run) == [100, 200, 300]


def test_the_weights_are_the_newest_averaged_ones_with_what_is_needed_to_use_them(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "weights.safetensors"
    problem, said = ask("export", str(run), "--out", str(out))
    assert problem is None, said
    with safe_open(out, "pt") as file:
        assert {name: file.get_tensor(name).tolist() for name in file.keys()} == {
            n: t.tolist() for n, t in ema(300).items()
        }
        header = file.metadata()
    assert header["images"] == "300" and header["config"] == "name: run\n" and json.loads(header["card"]) == CARD


def test_weights_of_a_damaged_checkpoint_are_those_of_the_one_before(run: Path, tmp_path: Path) -> None:
    spoil(run, 300)
    ask("export", str(run), "--out", str(tmp_path / "weights.safetensors"))
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        assert file.metadata()["images"] == "200"


def test_weights_that_cannot_be_written_are_an_error_that_names_the_file(run: Path, tmp_path: Path) -> None:
    found = latest(run / "checkpoints", warn=pytest.fail)
    assert found is not None
    with pytest.raises(CheckpointError, match="nowhere"):
        export_weights(found, tmp_path / "nowhere" / "weights.safetensors")


def test_the_list_says_why_each_is_kept(measured: Path, tmp_path: Path) -> None:
    problem, said = ask("list", str(measured), "--json", str(tmp_path / "list.json"))
    assert problem is None and "best test/x: 0.9" in said and "of the last 1" in said
    listed = {row["images"]: row["reasons"] for row in json.loads((tmp_path / "list.json").read_text())}
    assert listed == {100: [], 200: ["best test/x: 0.9"], 300: [], 400: ["of the last 1"]}


def test_pruning_leaves_the_best(measured: Path) -> None:
    problem, said = ask("prune", str(measured), "--keep-last", "1")
    assert problem is None and names(measured) == [200, 400], said


@pytest.mark.parametrize(("which", "images"), [(None, 400), ("best", 200), ("300", 300)])
def test_which_checkpoint_is_used_can_be_said(measured: Path, which: str | None, images: int) -> None:
    assert select_checkpoint(measured, which).images == images


def test_the_best_of_what_is_whole_is_the_best(measured: Path) -> None:
    (measured / "checkpoints" / f"{200:012d}" / "ema.safetensors").unlink()
    assert select_checkpoint(measured, "best").images == 400
    with pytest.raises(CheckpointError, match=r"ema\.safetensors"):
        select_checkpoint(measured, "200")


@pytest.mark.parametrize("which", ["150", "worst", "../200", "²"])
def test_a_checkpoint_that_is_not_there_is_an_error_that_names_those_there_are(measured: Path, which: str) -> None:
    with pytest.raises(CheckpointError, match="possible: best, 100, 200, 300, 400"):
        select_checkpoint(measured, which)


def test_none_is_the_best_where_nothing_says_by_what(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint\.best is not set.*100, 200, 300"):
        select_checkpoint(run, "best")
