"""Every configuration up to 64 pixels trains a few real steps, in a separate process, on the data that it is for."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.backbones import settings

from mtgen.config import load
from mtgen.shards.make import make
from mtgen.tracking.journal import read_journal

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if min(load(path, ["device=cpu"]).size) <= 64)
"""Configurations small enough for a CPU; tests/preflight/test_cost.py counts the others on the meta device."""


def data_for(config: Path, tmp_path: Path, shared_data: Callable[[str], Path]) -> list[str]:
    """Overrides with the data: shared shards where data cannot be made here, otherwise digits from their recipe."""
    name = config.stem.partition("-")[0]
    if name == "photos":
        backbone = settings(tmp_path)
        return [
            f"data.path={shared_data('coco128')}",
            "data.test_split=train",
            f"discriminator.backbone.path={backbone['path']}",
            "discriminator.backbone.input_side=64",
        ]
    if name in ("coco128", "coco"):
        return [f"data.path={shared_data('coco128')}", "data.test_split=train"]  # it has no other split
    if name == "cifar10" or config.stem == "digits-all-32":  # it needs recordings
        return [f"data.path={shared_data('cifar10' if name == 'cifar10' else 'digits')}"]
    if config.stem == "digits-domains-32":
        for part, style in enumerate(("gray", "inverted")):
            make("digits", tmp_path / style, train=64, test=20, style=style, part=f"{part}/2")
        return [f"data.mixture=[{{path: {tmp_path / 'gray'}}}, {{path: {tmp_path / 'inverted'}}}]"]
    make("digits", tmp_path / "data", train=64, test=20)
    return [f"data.path={tmp_path / 'data'}"]


@pytest.mark.e2e
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_few_steps_of_every_configuration_give_finite_losses_of_all_its_tasks(
    config: Path, tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    changes = [
        *data_for(config, tmp_path, shared_data),
        f"runs={tmp_path / 'runs'}",
        "name=tried",
        "workers=0",
        "batch_size=8",  # the smallest batch in which a sample and its partner can be a pair
        "train.images=24",
        "train.log_every=8",
        "train.accumulation=1",
        "data.max_samples=24",
    ]
    command = [
        sys.executable,
        "-m",
        "mtgen.cli",
        "train",
        str(config),
        *changes,
        "--json",
        str(tmp_path / "outcome.json"),
    ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=500)
    outcome: dict[str, Any] = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome["status"] == "finished"
    numbers = {name for row in read_journal(tmp_path / "runs/tried") for name in row.values}
    assert not [name for name in numbers if name.endswith("/nonfinite")]
    for task in load(config, changes).task_settings():
        assert [name for name in numbers if name.startswith(f"loss_d/{task}_")], (
            f"no loss of {task} in {sorted(numbers)}"
        )
