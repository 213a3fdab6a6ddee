"""What a run trains on: rare labels that are oversampled."""

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from helpers import toy

from mtgen.config import Config
from mtgen.data.orders.lanes import Lanes
from mtgen.shards.make import make
from mtgen.training.dataset import build_order, cache_shortage, keep_order, open_data, order_facts, order_policy


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    make("shapes", folder := tmp_path_factory.mktemp("sets") / "shapes", resolution=16, train=200, test=10)
    return folder


def config(data: Path | str, **changes: Any) -> Config:
    tasks: dict[str, Any] = {"generation": {}, "classification": {}, "segmentation": {}}
    return toy.config(data={"path": str(data), "channels": "rgb", **changes}, tasks=tasks)


def seen(settings: Config, *components: str) -> float:
    """The fraction of a thousand positions whose sample has any of these labels."""
    samples = open_data(settings)
    row = build_order(settings, samples).sample(np.arange(1000))
    return float(np.logical_or.reduce([samples.present[component][row] for component in components]).mean())


def test_rare_labels_are_seen_as_often_as_configured(data: Path) -> None:
    few = {"keep_labels": {"class": 0.05, "mask": 0.05, "boxes": 0.5}}
    assert seen(config(data, **few), "class", "mask") < 0.2
    oversampled = config(data, **few, label_oversampling=0.4)  # no task needs boxes
    assert seen(oversampled, "class", "mask") == pytest.approx(0.4, abs=1e-3)


def test_rare_masks_are_oversampled_where_all_samples_have_classes(data: Path) -> None:
    masks = {"keep_labels": {"mask": 0.05}}
    assert seen(config(data, **masks), "mask") < 0.15
    assert seen(config(data, **masks, label_oversampling=0.3), "mask") == pytest.approx(0.3, abs=1e-3)


def test_labels_that_are_rare_separately_but_not_together_are_not_seen_less_often(data: Path) -> None:
    some = {"keep_labels": {"class": 0.35, "mask": 0.35}}
    asked = config(data, **some, label_oversampling=0.4)
    assert seen(asked, "class", "mask") == seen(config(data, **some), "class", "mask") > 0.45


def test_where_all_samples_have_labels_the_order_does_not_change(data: Path) -> None:
    plain, asked = (config(data, **more) for more in ({}, {"label_oversampling": 0.4}))
    positions = np.arange(1000)
    assert np.array_equal(
        *(build_order(settings, open_data(settings)).sample(positions) for settings in (plain, asked))
    )


def test_another_fraction_or_other_labels_are_another_order(data: Path) -> None:
    few, fewer = ({"keep_labels": {"class": kept, "mask": kept}} for kept in (0.1, 0.05))
    kinds: list[dict[str, Any]] = [
        few,
        few | {"label_oversampling": 0.4},
        few | {"label_oversampling": 0.3},
        fewer | {"label_oversampling": 0.4},
    ]
    found = [order_facts(settings, open_data(settings)) for settings in (config(data, **kind) for kind in kinds)]
    assert all(one != other for number, one in enumerate(found) for other in found[:number])


@pytest.fixture
def remote(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MTGEN_CACHE", str(tmp_path))
    fsspec.filesystem("memory").put(str(data), "/few", recursive=True)
    return "memory://few"


def test_labels_of_remote_shards_are_oversampled_in_lanes(remote: str) -> None:
    few = config(remote, keep_labels={"class": 0.05, "mask": 0.05}, label_oversampling=0.4)
    policy = order_policy(few, open_data(few))
    assert policy.name == "lanes" and policy.lanes == Lanes(8, few.batch_size // 8)
    positions = np.arange(8 * 1000)  # a thousand places of each lane
    samples = open_data(few)
    row = build_order(few, samples).sample(positions)
    labeled = samples.present["class"][row] | samples.present["mask"][row]
    assert [labeled[policy.lanes.lane(positions) == lane].sum() for lane in range(8)] == [400] * 8


class Described(list[int]):
    """As much of a data set as the choice of an order depends on."""

    def __init__(self, remote: bool, count: int, num_bytes: int) -> None:
        self.remote, self.count, self.num_bytes = remote, count, num_bytes
        self.sizes = np.full(100, count // 100)
        self.whole = count

    def __len__(self) -> int:
        return self.count


def samples_of(remote: bool = False, count: int = 1000, num_bytes: int = 10**6) -> Any:
    return Described(remote, count, num_bytes)


@pytest.mark.parametrize(
    ("remote", "count", "name"),
    [(False, 10_000_000, "global"), (False, 10_000_001, "lanes"), (True, 5, "lanes")],
)
def test_remote_and_large_data_is_read_in_lanes(remote: bool, count: int, name: str, data: Path) -> None:
    assert order_policy(config(data), samples_of(remote, count)).name == name
    assert order_policy(config(data, max_samples=4), samples_of(remote, count)).name == "global"


@pytest.mark.parametrize(
    ("batch", "workers", "lanes"),
    [(64, 1, 8), (64, 2, 8), (64, 8, 8), (64, 16, 16), (12, 1, 6), (14, 7, 7), (16384, 1024, 1024), (96, 12, 12)],
)
def test_there_is_a_lane_per_worker_and_at_least_8(batch: int, workers: int, lanes: int, data: Path) -> None:
    settings = config(data)
    settings.batch_size, settings.workers = batch, workers
    policy = order_policy(settings, samples_of(remote=True))
    assert policy.lanes == Lanes(lanes, batch // lanes)


@pytest.mark.parametrize(
    ("mean_bytes", "lanes", "window"),
    [(10_000, 8, 2**15), (10_000, 1024, 2**15), (10_000, 2, 2**17), (1_000_000, 8, 1000), (10**10, 8, 1)],
)
def test_the_windows_of_a_nodes_lanes_have_a_bounded_size(mean_bytes: int, lanes: int, window: int, data: Path) -> None:
    settings = config(data)
    settings.batch_size, settings.data.lanes = 1024, lanes
    assert order_policy(settings, samples_of(True, 1000, 1000 * mean_bytes)).window == window


def test_a_resumed_run_keeps_the_lanes_and_windows_of_its_checkpoint(data: Path) -> None:
    samples = samples_of(remote=True)
    facts = order_facts(config(data, lanes=4, lane_window=77), samples)
    more = config(data)
    more.workers = 16
    assert order_facts(more, samples) != facts
    keep_order(more, facts)
    assert order_facts(more, samples) == facts


def test_a_run_that_was_windowed_by_default_stays_windowed(data: Path) -> None:
    samples, resumed = samples_of(remote=True), config(data)
    facts = order_facts(config(data, order="windowed"), samples)
    assert facts["data.window"] == 8 and facts["data.lanes"] is None
    keep_order(resumed, facts)
    assert order_facts(resumed, samples) == facts


def test_an_order_that_is_configured_is_not_replaced(data: Path) -> None:
    samples, asked = samples_of(remote=True), config(data, order="lanes", lanes=2)
    keep_order(asked, order_facts(config(data, order="lanes", lanes=4, lane_window=9), samples))
    assert asked.data.lanes == 2 and asked.data.lane_window == 9
    keep_order(asked, {})
    assert asked.data.order == "lanes"


def test_another_batch_size_is_another_order_in_lanes_alone(data: Path) -> None:
    one, other = config(data), config(data)
    other.batch_size = 2 * one.batch_size
    assert order_facts(one, samples_of()) == order_facts(other, samples_of())
    assert order_facts(one, samples_of(remote=True)) != order_facts(other, samples_of(remote=True))


def test_a_cache_that_does_not_hold_the_windows_of_a_node_is_noticed(data: Path) -> None:
    settings = config(data, lane_window=1000, cache_gb=10)
    samples = samples_of(True, 10**6, 10**12)  # shards of 10 GB, samples of 1 MB
    found = cache_shortage(settings, samples, workers=8, workers_on_node=4)  # 4 lanes of 2 x (1 + 10) GB
    assert (
        found is not None and "data.cache_gb=10: the shuffle windows of this node's 4 lanes take about 88 GB" in found
    )
    settings.data.cache_gb = 88
    assert cache_shortage(settings, samples, workers=8, workers_on_node=4) is None
    assert cache_shortage(settings, samples, workers=8, workers_on_node=8) is not None
    assert cache_shortage(settings, samples_of(False, 10**6, 10**12), workers=1, workers_on_node=1) is None
    small = samples_of(True, 1000, 87 * 10**9)  # all of it fits
    assert cache_shortage(settings, small, workers=1, workers_on_node=1) is None
