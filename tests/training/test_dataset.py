"""What a run trains on: rare labels that are oversampled."""

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from helpers import toy

from mtgen.config import Config
from mtgen.errors import DataError
from mtgen.shards.make import make
from mtgen.training.dataset import build_order, open_data, order_facts


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


def test_oversampling_from_remote_shards_is_refused_unless_the_order_is_global(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTGEN_CACHE", str(tmp_path))
    fsspec.filesystem("memory").put(str(data), "/few", recursive=True)
    with pytest.raises(DataError, match="data.label_oversampling: .* have to be downloaded; set data.order=global"):
        open_data(config("memory://few", label_oversampling=0.4))
    assert len(open_data(config("memory://few", label_oversampling=0.4, order="global"))) == 190
