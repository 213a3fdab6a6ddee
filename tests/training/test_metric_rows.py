"""A row of metrics is the mean over all its steps, also if the run was interrupted between two rows."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import toy

from mtgen.launchers.driver import launch
from mtgen.shards.make import make
from mtgen.tracking.journal import read_journal
from mtgen.training.running_means import RunningMeans


def train(folder: Path, name: str, **more: Any) -> list[tuple[int, dict[str, float]]]:
    """Train or resume, with a checkpoint every 48 images and a row every 80; returns the rows without times."""
    changes = {
        "train": {"images": 160, "beta2": {"start": 0.9, "end": 0.99}, **more},
        "generator": {"widths": [8, 8], "latent": 4, "learning_rate": {"start": 2e-4, "end": 5e-5}},
        "augment": {"probability": {"start": 0.0, "end": 0.55, "images": 0.5}},
        "checkpoint": {"every": 48},
        "evaluate": {"every": 10**9},
        "balancing": {"weighting": "upgrad"},
    }
    gamma = {"start": 10, "end": 1, "images": 100}
    tasks = {"segmentation": {"self_training": 0.5}, "generation": {"gamma": gamma}}
    launch(toy.small_run(folder, name, tasks=tasks, **changes), watch=lambda *_: None, say=print)
    rows = [row for row in read_journal(folder / "runs" / name) if "loss/d" in row.values]
    return [
        (row.images, {k: v for k, v in row.values.items() if not k.startswith(("speed", "checkpoint", "system"))})
        for row in rows
    ]


def test_a_run_that_resumes_between_two_rows_has_the_rows_of_the_uninterrupted_one(tmp_path: Path) -> None:
    make("shapes", tmp_path / "data", resolution=16, train=200, test=20)
    uninterrupted = train(tmp_path, "calm")
    assert [images for images, _ in uninterrupted] == [80, 160]
    assert any(key.startswith("balancing_discriminator/cosine") for key in uninterrupted[0][1])
    half, end = (numbers for _, numbers in uninterrupted)
    assert (half["schedule/augment.probability"], end["schedule/tasks.generation.gamma"]) == (0.55, 1.0)
    assert (end["learning_rate/generator"], end["schedule/train.beta2"]) == (5e-5, 0.99)
    for last in (48, 96, 144):
        folder = Path(
            shutil.copytree(
                tmp_path / "runs/calm", tmp_path / f"runs/from-{last}", ignore=shutil.ignore_patterns("tracking.*")
            )
        )
        for late in (folder / "checkpoints").glob("[0-9]*"):
            if int(late.name) > last:
                shutil.rmtree(late)
        assert train(tmp_path, f"from-{last}") == uninterrupted


def test_a_run_that_is_out_of_time_evaluates_its_last_weights(tmp_path: Path) -> None:
    make("shapes", tmp_path / "data", resolution=16, train=200, test=20)
    train(tmp_path, "short", images=100_000, max_minutes=0.001)
    rows = list(read_journal(tmp_path / "runs/short"))
    last = max(row.images for row in rows)
    assert last < 100_000
    assert [row.images for row in rows if "val/class_accuracy" in row.values] == [last]
    assert list((tmp_path / "runs/short/samples").glob(f"*{last}*"))


def kept(everyone: list[dict[str, tuple[str, int]]] | None) -> Any:
    """On each worker: add two values and return the state; or restore a state, and read the means."""
    import torch.distributed as dist

    means = RunningMeans(None)
    if everyone is None:
        means.add(
            "loss", {"a": torch.tensor(0.1 + dist.get_rank()), f"of{dist.get_rank()}": torch.tensor(float("nan"))}
        )
        means.add("loss", {"a": torch.tensor(0.7)})
        return means.state()
    means.load(everyone)
    return means.read(["loss/a", "loss/of0", "loss/of1", "loss/of2"])


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_means_resume_on_any_number_of_workers(tmp_path: Path, workers: int) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    state = toy.spawn(2, kept, before, None)[0]
    for found in toy.spawn(workers, kept, after, state):
        assert found["loss/a"] == pytest.approx((0.1 + 0.7 + 1.1 + 0.7) / 4)
        assert set(found) == {"loss/a", "loss/of0", "loss/of1"} and found["loss/of0"] != found["loss/of0"]
