"""Trials of a run on real data before it starts."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mtgen.config import load
from mtgen.errors import DataError
from mtgen.preflight.dry_run import dry_run, fast_dev_run, overfit

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "device=cpu",
    "precision=fp32",
    "workers=0",
    "batch_size=4",
    "resolution=8",
    "generator.widths=[8, 8]",
    "discriminator.widths=[8, 8]",
]


def test_a_dry_run_counts_labels_and_parameters_and_writes_no_run(
    tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    config = load(
        ROOT / "configs/digits-32.yaml", [*SMALL, f"data.path={shared_data('digits')}", f"runs={tmp_path / 'runs'}"]
    )
    found = dry_run(config)
    assert (found.train, found.validation, found.test) == (3800, 200, 1000)
    assert found.labelled["tasks.classification"] == found.labelled["tasks.segmentation"] == 3800
    assert found.state == 20 * found.cost.total
    assert found.images_per_second is not None and found.images_per_second > 0
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_has_the_errors_of_a_start(shared_data: Callable[[str], Path]) -> None:
    config = load(ROOT / "configs/digits-32.yaml", [*SMALL, f"data.path={shared_data('cifar10')}"])
    with pytest.raises(DataError, match="tasks.segmentation: no sample of split 'train'"):
        dry_run(config)


def test_overfitting_tests_on_its_training_samples_under_another_name() -> None:
    config = overfit(load(ROOT / "configs/digits-32.yaml", SMALL), 7)
    assert (config.name, config.data.max_samples, config.augment.probability) == ("digits-32-overfit-7", 7, 0)
    assert config.data.train_split == config.data.val_split == config.data.test_split == "train"


def test_a_fast_dev_run_is_two_steps_with_everything_outside_the_runs(tmp_path: Path) -> None:
    config = fast_dev_run(load(ROOT / "configs/digits-32.yaml", SMALL), tmp_path)
    assert (config.train.images, config.checkpoint.every, config.evaluate.every, config.train.log_every) == (8, 4, 4, 4)
    assert config.folder == tmp_path / "digits-32"
    assert str(tmp_path) in str(config.tracking.uri)
