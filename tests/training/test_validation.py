"""No test sample is read in training: not for pictures and metrics, and not to choose the best checkpoint."""

from pathlib import Path

import pytest
from helpers import toy

from mtgen.checkpointing import checkpoint
from mtgen.errors import DataError
from mtgen.evaluation.run import EvaluationOptions, evaluate_run
from mtgen.launchers.driver import launch
from mtgen.models.loading import retention_of, select_checkpoint
from mtgen.shards.make import make
from mtgen.tracking.journal import read_journal
from mtgen.tracking.run_log import LOG_FILE


def test_without_its_test_shards_a_run_keeps_its_best_checkpoint_and_only_its_evaluation_fails(tmp_path: Path) -> None:
    make("shapes", tmp_path / "data", resolution=16, train=100, test=20)
    (tmp_path / "data" / "test-000000.tar").unlink()
    config = toy.small_run(
        tmp_path,
        "run",
        train={"images": 160},
        checkpoint={"every": 32, "keep": 1, "best": {"metric": "val/class_accuracy"}},
        evaluate={"every": 32},
    )
    outcome = launch(config, watch=lambda *_: None, say=print)
    assert (outcome.status, outcome.images) == ("finished", 160)

    rows = {row.images: row.values for row in read_journal(config.folder) if "val/class_accuracy" in row.values}
    assert list(rows) == [32, 64, 96, 128, 160]
    assert not any(name.startswith("test/") for values in rows.values() for name in values)
    accuracy = {images: values["val/class_accuracy"] for images, values in rows.items()}
    best = max(accuracy, key=lambda images: (accuracy[images], -images))
    assert select_checkpoint(config.folder, "best").images == best
    kept = {int(folder.name) for folder in checkpoint.checkpoint_folders(config.folder / "checkpoints")}
    assert kept == {best, 160} and retention_of(config.folder).best is not None
    assert (config.folder / "samples" / f"{160:09d}-reading.png").is_file()
    assert "95 samples of split train" in (text := (config.folder / LOG_FILE).read_text())
    assert "5 held out for validation" in text

    with pytest.raises(DataError, match="test-000000.tar: dataset.json names this shard"):
        evaluate_run(config.folder, EvaluationOptions(samples=100, device="cpu", metrics=("test/class_accuracy",)))


def test_a_validation_split_that_does_not_exist_is_an_error_before_any_step(tmp_path: Path) -> None:
    make("shapes", tmp_path / "data", resolution=16, train=20, test=0)
    config = toy.small_run(tmp_path, "run", data={"path": str(tmp_path / "data"), "val_split": "vla"})
    with pytest.raises(DataError, match="no split 'vla'; possible: train"):
        launch(config, watch=lambda *_: None, say=print)
