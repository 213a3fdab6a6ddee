"""Splitting deals every sample once, by its key alone, and changes none of its bytes."""

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgen.errors import ConfigError, DataError
from mtgen.shards.make import make
from mtgen.shards.split import dealt, parse_shares, split
from mtgen.shards.validate import validate

SHARES = {"train": 0.5, "val": 0.25, "test": 0.25}


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    return found


def test_every_sample_is_in_one_split_with_its_bytes(tmp_path: Path) -> None:
    make("shapes", tmp_path / "in", train=30, test=10)
    card = split(tmp_path / "in", tmp_path / "out", SHARES)
    assert members(tmp_path / "out") == members(tmp_path / "in")
    assert set(card.splits) == set(SHARES) and sum(part.samples for part in card.splits.values()) == 40
    assert card.model_extra is not None and card.model_extra["split_by"] == {"shares": SHARES, "seed": 0}
    assert validate(tmp_path / "out").problems == []


def test_members_that_say_nothing_here_go_with_their_sample(tmp_path: Path) -> None:
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
    split(tmp_path / "in", tmp_path / "in", SHARES, overwrite=True)
    assert members(tmp_path / "in") == full


def test_members_that_belong_to_no_image_are_named(tmp_path: Path) -> None:
    make("shapes", tmp_path / "in", train=2, test=0)
    with tarfile.open(tmp_path / "in/train-000000.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("alone.emb.npy"))
    with pytest.raises(DataError, match=r"sample 'alone': \.emb\.npy belongs to no image"):
        split(tmp_path / "in", tmp_path / "out", SHARES)


@given(st.integers(0, 9), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_splits_get_their_shares(seed: int, weights: list[int]) -> None:
    shares = {f"s{i}": weight / sum(weights) for i, weight in enumerate(weights)}
    counts = dict.fromkeys(shares, 0)
    for i in range(2000):
        counts[dealt(seed, str(i), shares)] += 1
    assert all(abs(counts[name] / 2000 - part) < 0.06 for name, part in shares.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train=0.5 test=0.4", "add up to 0.9"),
        ("train", "a share is written"),
        ("train=-1 test=2", "train=-1: a share is above 0"),
    ],
)
def test_shares_that_cannot_be_are_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_shares(text.split())


def test_a_damaged_shard_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    make("shapes", tmp_path / "in", train=5, test=0)
    shard = tmp_path / "in/train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"train-000000.tar: cut short"):
        split(tmp_path / "in", tmp_path / "out", SHARES)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
