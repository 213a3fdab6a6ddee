"""A damaged sample is replaced in the same way on every worker, or stops the run; its neighbors are not affected."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.loading import load

from mtgen.data.image_io import header
from mtgen.data.index import Index, open_index
from mtgen.data.orders.permutation import Order
from mtgen.data.reader import Damage
from mtgen.errors import DamagedSample, DataError
from mtgen.schema import Batch

Write = Callable[..., Path]
Sample = Callable[..., dict[str, Any]]
Encode = Callable[..., bytes]

BROKEN = {3, 11, 12, 25}
SETTINGS: dict[str, Any] = {"batch_size": 12, "rank": 0, "world": 1, "resolution": 16, "channels": "rgb", "seed": 5}


def read(index: Index, steps: int, **changes: Any) -> tuple[list[Batch], Damage, int]:
    """Batches, damage, and how many times the pipeline was rebuilt."""
    with load(index, **SETTINGS | {"on_damage": "skip"} | changes) as loader:
        batches = list(islice(loader, steps))
        return batches, loader.damaged, loader.rebuilds


@pytest.fixture
def damaged(write: Write, sample: Sample, encode: Encode) -> Index:
    """36 samples of noise: three have damaged pixels, one a mask with an unknown class; every fourth has no mask."""
    random = np.random.default_rng(0)

    def one(i: int) -> dict[str, Any]:
        data = encode(random.integers(0, 256, (40, 40, 3), dtype=np.uint8))
        middle = len(data) // 2
        changes: dict[str, Any] = {
            "png": data[:middle] + bytes(200) + data[middle + 200 :] if i in (3, 11, 12) else data
        }
        if i == 25:
            changes["mask.png"] = encode(np.full((40, 40), 77, np.uint8))
        if i % 4 == 0:
            changes["mask.png"] = None
        return sample(i, 40, **changes)

    return open_index(write({"train": [[one(i) for i in range(36)]]}), "train")


def has_header(data: bytes) -> bool:
    try:
        return bool(header(data))
    except ValueError:
        return False


def same(one: list[Batch], other: list[Batch]) -> None:
    for a, b in zip(one, other, strict=True):
        for name in ("position", "image", "label", "mask"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_an_epoch_has_all_good_samples_and_names_every_damaged_one(damaged: Index) -> None:
    good, found, _ = read(damaged, 3)
    order = Order(36, 5).sample(np.arange(36))
    assert {damaged.name(i) for i in BROKEN} <= {damage.where for _, damage in found}
    assert {int(order[at]) for at, damage in found if damage.where == damaged.name(order[at])} == BROKEN
    labels = torch.cat([batch.label for batch in good])
    for row, i in enumerate(order):
        assert i in BROKEN or labels[row] == damaged.label[i]


def test_the_kind_is_the_damaged_component(damaged: Index) -> None:
    _, found, _ = read(damaged, 3)
    kinds = {damage.where.rpartition(" ")[2]: damage.kind for _, damage in found}
    assert kinds == {"s00003": "image", "s00011": "image", "s00012": "image", "s00025": "mask"}


def test_a_replacement_has_the_components_that_every_worker_expects(damaged: Index) -> None:
    for batch in read(damaged, 6)[0]:
        assert torch.equal(batch.present["mask"], batch.step_present["mask"])
        assert torch.equal(batch.present["mask"], ~(batch.mask == 255).flatten(1).all(1))


@pytest.mark.parametrize("crop", [1.0, 0.2])
@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_workers_sees_the_same_replacements(world: int, crop: float, damaged: Index) -> None:
    alone, *_ = read(damaged, 7, crop=crop, flip=True)
    parts = [read(damaged, 7, crop=crop, flip=True, rank=rank, world=world)[0] for rank in range(world)]
    for step, whole in enumerate(alone):
        assert torch.equal(whole.image, torch.cat([part[step].image for part in parts]))
        assert torch.equal(whole.label, torch.cat([part[step].label for part in parts]))


@pytest.mark.parametrize("crop", [1.0, 0.2])
def test_a_resumed_loader_that_does_not_know_the_damage_sees_the_same_pixels(crop: float, damaged: Index) -> None:
    whole, found, _ = read(damaged, 9, crop=crop)
    for begin in (1, 4, 7):
        again, later, _ = read(damaged, 9 - begin, crop=crop, position=12 * begin)
        same(whole[begin:], again)
        assert [(at, damage.where) for at, damage in later] == [
            (at, damage.where) for at, damage in found if at >= 12 * begin
        ]


def test_the_pipeline_is_rebuilt_in_the_first_epoch_only(damaged: Index) -> None:
    first, later = read(damaged, 3)[2], read(damaged, 12)[2]
    assert 1 <= first <= 3 and first == later


def test_damage_is_reported_with_its_batch(damaged: Index) -> None:
    with load(damaged, **SETTINGS, on_damage="skip", prefetch=5) as loader:
        for step in range(6):
            loader.look_ahead(3)
            next(loader)
            assert all(at < 12 * (step + 1) for at, _ in loader.damaged)


def test_with_stop_the_error_names_shard_and_key(damaged: Index) -> None:
    with pytest.raises(DamagedSample, match=r"train-000000\.tar: s000(03|11|12|25): ") as raised:
        read(damaged, 3, on_damage="stop")
    assert raised.value.kind in ("image", "mask") and raised.value.where.startswith(str(damaged.folder))


def test_bytes_that_differ_from_the_indexed_ones_are_skipped(damaged: Index) -> None:
    shard = Path(damaged.folder) / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    image = damaged.read(7, "image")
    data[data.index(image) + 30] ^= 1
    shard.write_bytes(data)
    _, found, _ = read(damaged, 3)
    assert {damage.kind for _, damage in found if damage.where.endswith("s00007")} == {"checksum"}


def test_a_missing_shard_is_an_error_even_with_skip(damaged: Index) -> None:
    (Path(damaged.folder) / "train-000000.tar").unlink()
    with pytest.raises(DataError, match=r"train-000000\.tar: s\d+: cannot be read \(No such file"):
        read(damaged, 1)


def test_if_all_samples_are_damaged_it_is_an_error_and_no_endless_loop(write: Write, sample: Sample) -> None:
    png = sample(0, 40)["png"]
    png = png[:45] + bytes(8) + png[53:]
    index = open_index(write({"train": [[sample(i, 40, png=png) for i in range(4)]]}), "train")
    with pytest.raises(
        DataError, match="replacements with the same components are damaged too: .*mtgen shards validate"
    ):
        read(index, 1, batch_size=4)


def test_a_jpeg_truncated_at_every_tenth_byte_is_counted_or_decoded_with_its_own_label(
    write: Write, sample: Sample, encode: Encode
) -> None:
    pixels = np.full((24, 24, 3), 200, np.uint8)
    pixels[::5, ::3] = 90
    jpeg = encode(pixels, "JPEG")
    end = b"\xff\xd9"  # without the end marker or a complete header, indexing already refuses the image
    cuts = [cut for cut in range(0, len(jpeg), 10) if has_header(jpeg[:cut] + end)]
    assert len(cuts) > 10
    parts = [sample(i, 24, png=None, jpg=jpeg[:cut] + end, cls=b"1") for i, cut in enumerate(cuts)]
    good = [sample(100 + i, 24, png=encode(np.full((24, 24, 3), 10, np.uint8)), cls=b"2") for i in range(8)]
    index = open_index(write({"train": [parts + good]}), "train")
    steps = -(-len(index) // 4)
    batches, found, _ = read(index, steps, batch_size=4, crop=0.5)
    assert found
    for batch in batches:
        dark = batch.image.mean((1, 2, 3)) < -0.9
        assert torch.equal(dark, batch.label == 2)


def test_a_replacement_is_from_the_same_shard_unless_it_has_none(write: Write, sample: Sample) -> None:
    shards = [[sample(i, txt=b"\xff" if i in (1, 8) else b"x") for i in part] for part in (range(4), range(4, 8), [8])]
    index = open_index(write({"train": shards}), "train")
    order = Order(9, 5)
    (batch,), found, _ = read(index, 1, batch_size=180, order=order, components=("caption",))
    assert len(found) >= 40
    shown = ((batch.image[:, 0, 0, 0] + 1) * 127.5).round().long().numpy()
    planned = order.sample(np.arange(180))
    assert set(shown[planned == 1]) == {0, 2, 3}
    assert set(shown[planned == 8]) == {0, 2, 3, 4, 5, 6, 7}
    assert np.array_equal(shown[(planned != 1) & (planned != 8)], planned[(planned != 1) & (planned != 8)])
