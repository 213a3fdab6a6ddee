"""`mtgen train --new` and `--require-checkpoint`: what a run has to be for training to start."""

from pathlib import Path
from typing import Any

import pytest
from helpers import toy

from mtgen.errors import CheckpointError, ConfigError
from mtgen.launchers.driver import launch


def start(folder: Path, changes: dict[str, dict[str, Any]] | None = None, **how: bool) -> None:
    launch(toy.small_run(folder, "run", **(changes or {})), watch=lambda *_: None, say=print, **how)


@pytest.mark.parametrize("left", ["config.yaml", "checkpoints/000000000016"])
def test_a_run_that_exists_is_not_started_as_a_new_one(tmp_path: Path, left: str) -> None:
    path = tmp_path / "runs/run" / left
    path.parent.mkdir(parents=True)
    path.mkdir() if path.suffix == "" else path.write_text("name: run")
    with pytest.raises(ConfigError, match=r"name=run: .*runs/run exists; choose another name"):
        start(tmp_path, new=True)


def test_a_run_of_which_only_the_mirror_has_checkpoints_exists(tmp_path: Path) -> None:
    (tmp_path / "mirror/run/000000000016").mkdir(parents=True)
    (tmp_path / "mirror/run/000000000016/manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"name=run: .*mirror.* has a run of this name"):
        start(tmp_path, {"checkpoint": {"mirror": str(tmp_path / "mirror")}}, new=True)


def test_a_checkpoint_that_is_required_and_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint to resume from; leave --require-checkpoint out"):
        start(tmp_path, require_checkpoint=True)
