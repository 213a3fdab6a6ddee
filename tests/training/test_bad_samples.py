"""Damage is summed over workers, each sample is logged once, and too many of them stop all workers."""

import json
from pathlib import Path

import pytest
import torch.distributed as dist

from mtgen.errors import DamagedSample
from mtgen.training.bad_samples import DamageLog

pytestmark = pytest.mark.usefixtures("process_group")


def log(folder: Path, limit: float = 0.01) -> DamageLog:
    return DamageLog(folder, limit, "data_shards/mine", dist.group.WORLD)


def found(*samples: tuple[int, str]) -> list[tuple[int, DamagedSample]]:
    return [
        (position, DamagedSample(kind, f"shard.tar: s{position % 100}", f"{kind}: broken"))
        for position, kind in samples
    ]


def test_each_sample_is_logged_once_and_counted_every_time(tmp_path: Path) -> None:
    damage = log(tmp_path)
    lines, problem = damage.count(found((3, "image"), (7, "mask")), 1000)
    assert lines == [
        f"shard.tar: {text}; replaced by another sample" for text in ("s3: image: broken", "s7: mask: broken")
    ]
    assert damage.count(found((103, "image")), 2000) == ([], None) and problem is None
    assert damage.numbers() == {"data/damaged_image": 2.0, "data/damaged_mask": 1.0}
    rows = [json.loads(line) for line in (tmp_path / "damaged.jsonl").read_text().splitlines()]
    assert [(row["sample"], row["kind"], row["position"]) for row in rows] == [
        ("shard.tar: s3", "image", 3),
        ("shard.tar: s7", "mask", 7),
    ]


def test_a_resumed_run_logs_only_what_is_new_also_after_an_incomplete_line(tmp_path: Path) -> None:
    log(tmp_path).count(found((3, "image")), 100)
    with (tmp_path / "damaged.jsonl").open("a") as file:
        file.write('{"sample": "sha')
    lines, _ = log(tmp_path).count(found((103, "image"), (5, "image")), 100)
    assert lines == ["shard.tar: s5: image: broken; replaced by another sample"]
    assert [json.loads(line)["sample"] for line in (tmp_path / "damaged.jsonl").read_text().splitlines()] == [
        "shard.tar: s3",
        "shard.tar: s5",
    ]


def test_more_than_the_limit_stops_with_the_fraction_the_limit_and_the_remedy(tmp_path: Path) -> None:
    damage = log(tmp_path, 0.02)
    assert damage.count(found(*((i, "image") for i in range(16))), 800)[1] is None
    problem = damage.count(found((16, "mask")), 800)[1]
    assert problem is not None
    for part in (
        "17 of 800 samples (2.1%)",
        "16 image, 1 mask",
        "data.damage_limit=0.02",
        "mtgen shards validate data_shards/mine",
    ):
        assert part in str(problem)


def test_a_few_damaged_samples_never_stop_a_run(tmp_path: Path) -> None:
    damage = log(tmp_path, 0.0)
    assert damage.count(found(*((i, "image") for i in range(9))), 10)[1] is None
    assert damage.count(found((9, "image")), 11)[1] is not None
