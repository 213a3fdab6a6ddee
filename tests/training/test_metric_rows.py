"""A row of metrics is the mean over all its steps, also if the run was interrupted between two rows."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import toy

from mtgen.launchers.driver import launch
from mtgen.shards.make import make
from mtgen.tracking.journal import read_journal
from mtgen.training.forward_timer import ForwardTimer
from mtgen.training.progress import RunProgress
from mtgen.training.row_exchange import RowExchange
from mtgen.training.running_means import RunningMeans
from mtgen.training.throughput_timer import ThroughputTimer


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
    means = RunningMeans(None)
    if everyone is None:
        means.add(
            "loss", {"a": torch.tensor(0.1 + dist.get_rank()), f"of{dist.get_rank()}": torch.tensor(float("nan"))}
        )
        means.add("loss", {"a": torch.tensor(0.7)})
        return means.state()
    means.load(everyone)
    found, _ = means.read()
    return found


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_means_resume_on_any_number_of_workers(tmp_path: Path, workers: int) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    state = toy.spawn(2, kept, before, None)[0]
    for found in toy.spawn(workers, kept, after, state):
        assert found["loss/a"] == pytest.approx((0.1 + 0.7 + 1.1 + 0.7) / 4)
        assert set(found) == {"loss/a", "loss/of0", "loss/of1"} and found["loss/of0"] != found["loss/of0"]


@pytest.mark.usefixtures("process_group")
def test_a_row_takes_one_message_once_its_names_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    means, messages = RunningMeans(None), list[str]()
    for name in ("all_reduce", "all_gather_object"):
        sent = getattr(dist, name)
        monkeypatch.setattr(dist, name, lambda *a, s=sent, n=name, **k: (messages.append(n), s(*a, **k)))
    found = []
    for names in (("a",), ("a",), ("a", "b"), ("b",)):
        means.add("loss", {name: torch.tensor(2.0) for name in names})
        found.append((means.read([7.0]), tuple(messages)))
        messages.clear()
    alone, with_names = ("all_reduce",), ("all_reduce", "all_gather_object", "all_reduce")
    assert [sent for _, sent in found] == [with_names, alone, with_names, alone]
    assert [set(read) for (read, _), _ in found] == [{"loss/a"}, {"loss/a"}, {"loss/a", "loss/b"}, {"loss/b"}]
    assert all(workers == [[7.0]] for (_, workers), _ in found)


def exchanged() -> list[Any]:
    """A row of two workers: worker 1 takes twice as long for its passes and waits for data half of the time."""
    slow = dist.get_rank() == 1
    clock = iter((0.0, 0.0, 4.0, 4.0))
    parts: Any = SimpleNamespace(
        timer=ThroughputTimer(clock=lambda: next(clock)),
        loader=SimpleNamespace(waited=2.0 * slow, damaged=[None] * (3 * slow)),
        progress=RunProgress(100, images=80, steps=5),
        means=RunningMeans(None),
        engines={"discriminator": SimpleNamespace(forward_timer=SimpleNamespace(read=lambda: 20.0 if slow else 10.0))},
    )
    parts.timer.start(0, 0.0)
    exchange = RowExchange(parts)
    row = exchange.row()
    assert exchange.row() is row
    return [row.numbers(), row.damaged]


def test_a_row_names_the_slowest_worker(tmp_path: Path) -> None:
    for numbers, damaged in toy.spawn(2, exchanged, tmp_path):
        assert damaged == 3
        assert numbers == {
            "speed/images_per_second": 20.0,
            "speed/data_wait_share": 0.25,
            "workers/forward_ms_min": 10.0,
            "workers/forward_ms_mean": 15.0,
            "workers/forward_ms_max": 20.0,
            "workers/forward_ms_slowest": 1.0,
            "workers/data_wait_min": 0.0,
            "workers/data_wait_mean": 0.25,
            "workers/data_wait_max": 0.5,
            "workers/data_wait_slowest": 1.0,
        }


def test_a_forward_timer_is_the_mean_since_it_was_read() -> None:
    timer = ForwardTimer("cpu")
    assert timer.read() == 0.0
    with timer.time():
        pass
    assert timer.read() > 0.0 and timer.read() == 0.0
