"""Snapshots read no more than they are told to, whatever the splits hold."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from helpers import toy

from mtgen.evaluation import snapshots
from mtgen.evaluation.snapshots import Snapshots
from mtgen.models.model import Model, build
from mtgen.schema import Batch
from mtgen.shards.make import make


def test_a_snapshot_reads_the_first_samples_of_both_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = make("shapes", tmp_path / "data", resolution=16, train=30, test=1)
    data = {"path": str(tmp_path / "data"), "val_split": "train", "channels": "gray"}
    config = toy.small_run(tmp_path, "run", data=data, evaluate={"snapshot_samples": 7})
    read: list[list[int]] = []

    def evaluate(model: Model, validation: Iterable[Batch], train: Iterable[Batch], **others: Any) -> Any:
        read.extend([number for batch in part for number in batch.position.tolist()] for part in (validation, train))
        return {}

    monkeypatch.setattr(snapshots, "evaluate", evaluate)
    Snapshots(config)(Model(build(config, card), config, card), 0)
    assert read == [list(range(7))] * 2
