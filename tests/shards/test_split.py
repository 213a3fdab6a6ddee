"""Splitting assigns every sample to one split by its key alone, and does not change its bytes."""

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgen.errors import ConfigError, DataError
from mtgen.shards.make import make
from mtgen.shards.split import assign_split, parse_fractions, split
from mtgen.shards.validate import validate

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
