"""Splitting assigns every sample to one split by its key alone, and does not change its bytes."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgen.data.dataset_card import read_card, shard_names
from mtgen.data.shard_scan import StoredSample, samples
from mtgen.errors import ConfigError, DataError
from mtgen.shards.fragments import Fragment, plan_shards
from mtgen.shards.make import make
from mtgen.shards.split import assign_split, parse_fractions, split
from mtgen.shards.split_writer import ShardSize
from mtgen.shards.validate import validate
from mtgen.shards.write import ShardWriter

FRACTIONS = {"train": 0.5, "val": 0.25, "test": 0.25}


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    return found


def test_every_sample_is_in_one_split_unchanged(tmp_path: Path) -> None:
    make("shapes", tmp_path / "in", train=30, test=10)
    card = split(tmp_path / "in", tmp_path / "out", FRACTIONS)
    assert members(tmp_path / "out") == members(tmp_path / "in")
    assert set(card.splits) == set(FRACTIONS) and sum(part.samples for part in card.splits.values()) == 40
    assert card.model_extra is not None and card.model_extra["split_by"] == {"shares": FRACTIONS, "seed": 0}
    assert validate(tmp_path / "out").problems == []


def test_any_number_of_processes_writes_the_same_bytes_as_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("shapes", tmp_path / "in", train=30, test=10, samples_per_shard=7)
    split(tmp_path / "in", tmp_path / "one", {"all": 1.0})
    split(tmp_path / "in", tmp_path / "three", {"all": 1.0}, processes=3)
    card = read_card(tmp_path / "in")
    with ShardWriter(tmp_path / "written", card.name) as writer:
        for part in card.splits:
            for name in shard_names(tmp_path / "in", card, part):
                for item in samples(tmp_path / "in" / name):
                    assert isinstance(item, StoredSample)
                    writer.copy("all", item.key, {part.suffix: part.data for part in item.parts.values()})
    shards = [(tmp_path / folder / "all-000000.tar").read_bytes() for folder in ("one", "three", "written")]
    assert shards[0] == shards[1] == shards[2]


@given(st.lists(st.lists(st.integers(1, 40), max_size=12), max_size=6), st.integers(1, 100), st.integers(1, 5))
def test_shards_have_their_size_and_number_of_samples(sizes: list[list[int]], full: int, least: int) -> None:
    fragments = [Fragment(Path(str(n)), np.cumsum(own, dtype=np.int64), np.empty(0)) for n, own in enumerate(sizes)]
    shards = plan_shards(fragments, ShardSize(full, least))
    expected, now = [], []
    for number, own in enumerate(sizes):
        for begin, size in zip(np.cumsum(own) - own, own, strict=True):
            if len(now) >= least and sum(size for _, _, size in now) >= full:
                expected.append(now)
                now = []
            now.append((number, int(begin), size))
    expected += [now] if now else []
    covered = [[(int(piece.path.name), piece.begin, piece.end) for piece in shard] for shard in shards]
    assert [sum(end - begin for _, begin, end in shard) for shard in covered] == [
        sum(size for _, _, size in shard) for shard in expected
    ]
    assert [shard[0][:2] for shard in covered] == [shard[0][:2] for shard in expected]


def test_two_samples_with_one_key_are_named(tmp_path: Path) -> None:
    make("shapes", tmp_path / "in", train=4, test=0)
    shutil.copy(tmp_path / "in/train-000000.tar", tmp_path / "in/again.tar")
    card = json.loads((tmp_path / "in/dataset.json").read_text())
    card["splits"]["again"] = {"samples": 4, "shards": "again.tar"}
    (tmp_path / "in/dataset.json").write_text(json.dumps(card))
    with pytest.raises(DataError, match=r"in, sample '.*': another sample has the same key; rename one"):
        split(tmp_path / "in", tmp_path / "out", FRACTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_members_with_unknown_suffixes_stay_with_their_sample(tmp_path: Path) -> None:
    make("shapes", tmp_path / "in", train=4, test=0)
    shard = tmp_path / "in/train-000000.tar"
    before = members(tmp_path / "in")
    with tarfile.open(shard, "w") as tar:
        for name, data in before.items():
            own = {name: data} | ({name.replace(".cls", ".Emb.npy"): b"own"} if name.endswith(".cls") else {})
            for member, content in own.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    full = members(tmp_path / "in")
    assert len(full) == len(before) + 4
    split(tmp_path / "in", tmp_path / "in", FRACTIONS, overwrite=True)
    assert members(tmp_path / "in") == full


def test_members_without_an_image_are_named(tmp_path: Path) -> None:
    make("shapes", tmp_path / "in", train=2, test=0)
    with tarfile.open(tmp_path / "in/train-000000.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("alone.emb.npy"))
    with pytest.raises(DataError, match=r"sample 'alone': \.emb\.npy without an image"):
        split(tmp_path / "in", tmp_path / "out", FRACTIONS)


@given(st.integers(0, 9), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_splits_get_their_fractions(seed: int, weights: list[int]) -> None:
    fractions = {f"s{i}": weight / sum(weights) for i, weight in enumerate(weights)}
    counts = dict.fromkeys(fractions, 0)
    for i in range(2000):
        counts[assign_split(seed, str(i), fractions)] += 1
    assert all(abs(counts[name] / 2000 - part) < 0.06 for name, part in fractions.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train=0.5 test=0.4", "add up to 0.9"),
        ("train", "not SPLIT=FRACTION"),
        ("train=-1 test=2", "train=-1: the fraction has to be above 0"),
    ],
)
def test_invalid_fractions_are_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_fractions(text.split())


def test_a_damaged_shard_is_named_and_nothing_is_left_behind(tmp_path: Path) -> None:
    make("shapes", tmp_path / "in", train=5, test=0)
    shard = tmp_path / "in/train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"train-000000.tar: truncated"):
        split(tmp_path / "in", tmp_path / "out", FRACTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
