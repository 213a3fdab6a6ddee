"""Every configuration in `configs/` trains: a few real steps, in a process of its own, on the data that it is meant for."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtgen.config import load
from mtgen.journal import read_journal
from mtgen.shards.make import make

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def data_for(config: Path, tmp_path: Path, shared_data: Callable[[str], Path]) -> Path:
    """Shared shards for the sets that cannot be made here, else digits by their recipe."""
    name = config.stem.partition("-")[0]
    if name in ("cifar10", "coco128", "coco"):
        return shared_data("cifar10" if name == "cifar10" else "coco128")
    make("digits", tmp_path / "data", train=64, test=20)
    return tmp_path / "data"


@pytest.mark.e2e
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_few_steps_of_every_configuration_give_finite_losses_of_all_its_tasks(
    config: Path, tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    changes = [
        f"data.path={data_for(config, tmp_path, shared_data)}",
        f"runs={tmp_path / 'runs'}",
        "name=tried",
        "workers=0",
        "batch_size=4",
        "train.images=12",
        "train.log_every=4",
        "train.accumulation=1",
        *(["data.test=train"] if config.stem == "coco-64" else []),  # coco128 has no other split
    ]
    command = [sys.executable, "-m", "mtgen.cli", "train", str(config), *changes, "--json", str(tmp_path / "outcome.json")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=500)
    outcome: dict[str, Any] = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome["status"] == "finished"
    numbers = {name for row in read_journal(tmp_path / "runs/tried") for name in row.values}
    assert not [name for name in numbers if name.endswith("/nonfinite")]
    for task in load(config, changes).task_settings():
        assert [name for name in numbers if name.startswith(f"loss_d/{task}_")], f"no loss of {task} in {sorted(numbers)}"
