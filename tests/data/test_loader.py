"""Every worker gets its own samples with their labels, from any position on."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.loading import load, once
from helpers.sounds import samples, wav

from mtgen.config import SoundConfig
from mtgen.data.index import Index, open_index
from mtgen.data.mixture import keep_labels
from mtgen.data.orders.lanes import Lanes
from mtgen.data.orders.permutation import Order
from mtgen.data.orders.policy import OrderPolicy
from mtgen.errors import DataError
from mtgen.schema import COMPONENTS, Batch

Write = Callable[..., Path]
Sample = Callable[..., dict[str, Any]]
Encode = Callable[..., bytes]


def batches(index: Index, count: int, **changes: Any) -> list[Batch]:
    with load(index, **changes) as loader:
        return list(islice(loader, count))


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    parts = {name: getattr(batch, name) for name in ("position", "image", "label", "mask")}
    return parts | {f"present {name}": value for name, value in batch.present.items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def number(batch: Batch) -> np.ndarray:
    """The samples' numbers, from their pixels."""
    return np.rint((batch.image[:, 0, 0, 0].numpy() + 1) * 127.5).astype(int)


def test_batches_have_the_documented_shapes_and_types(numbered: Path) -> None:
    (batch,) = batches(open_index(numbered, "train"), 1, channels="rgb", resolution=16)
    assert batch.image.shape == (12, 3, 16, 16) and batch.image.dtype == torch.float32
    assert batch.mask.shape == (12, 16, 16) and batch.mask.dtype == torch.int64
    assert batch.label.dtype == batch.position.dtype == batch.step_position.dtype == torch.int64
    assert batch.present.keys() == batch.step_present.keys() == {"class", "mask"}
    assert all(
        value.shape == (12,) and value.dtype == torch.bool
        for value in [*batch.present.values(), *batch.step_present.values()]
    )


def test_labels_and_masks_stay_with_their_images(numbered: Path) -> None:
    for batch in batches(open_index(numbered, "train"), 12):
        i = number(batch)
        assert np.array_equal(batch.present["class"].numpy(), i % 3 != 0)
        assert np.array_equal(batch.present["mask"].numpy(), i % 4 != 0)
        assert np.array_equal(batch.label.numpy(), np.where(i % 3 != 0, i % 10, 0))
        assert np.array_equal(
            batch.mask.numpy(), np.broadcast_to(np.where(i % 4 != 0, i % 11, 255)[:, None, None], (12, 8, 8))
        )
        assert (batch.image == batch.image[:, :, :1, :1]).all()


def test_an_epoch_has_every_sample_once_in_the_given_order(numbered: Path) -> None:
    found = np.concatenate([number(batch) for batch in batches(open_index(numbered, "train"), 10)])
    assert np.array_equal(found, Order(60, 5).sample(np.arange(120)))
    assert sorted(found[:60]) == sorted(found[60:]) == list(range(60))


@pytest.mark.parametrize("position", [12, 60, 84, 7])
def test_starting_at_a_position_equals_reaching_it(position: int, numbered: Path) -> None:
    index = open_index(numbered, "train")
    long = batches(index, 12, crop=0.4, flip=True, position=position % 12)
    for one, other in zip(
        long[position // 12 :], batches(index, 12 - position // 12, crop=0.4, flip=True, position=position), strict=True
    ):
        assert_equal(tensors(one), tensors(other))


@pytest.mark.parametrize("world", [2, 3, 4, 12])
def test_any_number_of_workers_sees_the_same_samples_and_pixels(
    world: int, write: Write, encode: Encode, sample: Sample
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 23, 31, 3), dtype=np.uint8)
    none = {"mask.png": None}
    index = open_index(write({"train": [[sample(i, png=encode(pixels[i]), **none) for i in range(30)]]}), "train")
    settings: dict[str, Any] = {"crop": 0.3, "flip": True, "color_jitter": 0.4, "channels": "rgb", "resolution": 16}
    alone = batches(index, 5, **settings)
    workers = [batches(index, 5, **settings, rank=rank, world=world) for rank in range(world)]
    for step, whole in enumerate(alone):
        parts = [tensors(worker[step]) for worker in workers]
        assert_equal(tensors(whole), {name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def test_every_worker_knows_the_components_of_the_global_batch(numbered: Path) -> None:
    index = open_index(numbered, "train")
    (whole,) = batches(index, 1)
    for rank in range(3):
        (part,) = batches(index, 1, rank=rank, world=3)
        assert torch.equal(part.step_position, whole.position)
        assert all(torch.equal(part.step_present[name], whole.present[name]) for name in ("class", "mask"))


def test_seeds_differ(numbered: Path) -> None:
    index = open_index(numbered, "train")
    assert not torch.equal(batches(index, 1, seed=1)[0].image, batches(index, 1, seed=2)[0].image)


def test_the_number_of_decoding_threads_does_not_matter(numbered: Path) -> None:
    index = open_index(numbered, "train")
    for one, other in zip(batches(index, 3), batches(index, 3, threads=3, prefetch=1), strict=True):
        assert_equal(tensors(one), tensors(other))


def test_further_work_on_batches_is_done_in_the_loaders_thread(numbered: Path) -> None:
    threads = []

    def prepare(batch: Batch) -> Batch:
        threads.append(threading.current_thread().name)
        return replace(batch, step_roles=int(batch.step_position[0]))

    found = batches(open_index(numbered, "train"), 3, prepare=prepare)
    assert [batch.step_roles for batch in found] == [0, 12, 24]
    assert set(threads) == {"mtgen loader"}


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_workers_read_lanes_of_the_same_global_batch(world: int, numbered: Path) -> None:
    index = open_index(numbered, "train")
    order = index.order(OrderPolicy("lanes", 5, window=7, lanes=Lanes(4, 3)))
    workers = [batches(index, 5, order=order, rank=rank, world=world) for rank in range(world)]
    found = np.concatenate([number(part) for step in zip(*workers, strict=True) for part in step])
    assert np.array_equal(found, order.sample(np.arange(60)))
    assert sorted(found) == list(range(60))


def test_position_is_that_of_the_next_batch(numbered: Path) -> None:
    with load(open_index(numbered, "train"), rank=1, world=2, position=24) as loader:
        assert loader.position == 24
        next(loader)
        assert loader.position == 36 and loader.waited > 0


def test_looking_ahead_changes_no_batch_and_finds_an_error_in_its_place(
    write: Write, sample: Sample, encode: Encode
) -> None:
    mask = encode(np.full((8, 8), 11, np.uint8))
    samples = [sample(n, **({"mask.png": mask} if n == 5 else {})) for n in range(24)]
    index = open_index(write({"train": [samples]}), "train")
    with load(index, batch_size=2) as loader:
        expected = []
        with pytest.raises(DataError):
            for batch in loader:
                expected.append(tensors(batch))
    assert expected
    with load(index, batch_size=2) as loader:
        assert loader.look_ahead(len(expected)) == len(expected) and loader.error is None and loader.position == 0
        assert loader.look_ahead(len(expected) + 2) == len(expected) and isinstance(loader.error, DataError)
        for batch in expected:
            assert_equal(tensors(next(loader)), batch)
        with pytest.raises(DataError, match="s00005"):
            next(loader)


def test_a_batch_size_that_the_workers_do_not_divide_is_refused(numbered: Path) -> None:
    with pytest.raises(ValueError, match="world=5, batch_size=12: .*divisible"):
        batches(open_index(numbered, "train"), 1, world=5)


def test_images_alone_need_no_masks(write: Write, sample: Sample) -> None:
    index = open_index(
        write({"train": [[sample(i, cls=None, **{"mask.png": None}) for i in range(4)]]}, mask_classes=0), "train"
    )
    (batch,) = batches(index, 1, batch_size=4)
    assert (batch.mask == 255).all() and not batch.present["mask"].any() and not batch.step_present["class"].any()


def test_ignore_index_of_the_card_becomes_255(write: Write, sample: Sample, encode: Encode) -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[2, 3] = 77
    index = open_index(write({"train": [[sample(0, **{"mask.png": encode(mask)})]]}, ignore_index=77), "train")
    (batch,) = batches(index, 1, batch_size=1)
    assert batch.mask[0, 2, 3] == 255 and batch.mask.sum() == 255


def test_a_mask_class_outside_the_card_names_the_sample(write: Write, sample: Sample, encode: Encode) -> None:
    folder = write({"train": [[sample(0), sample(1, **{"mask.png": encode(np.full((8, 8), 11, np.uint8))})]]})
    with pytest.raises(
        DataError, match=r"train-000000\.tar: s00001: mask class 11, dataset\.json names 11 classes from 0"
    ):
        batches(open_index(folder, "train"), 1, batch_size=2)


def test_a_damaged_image_names_shard_and_key_and_the_error_repeats(
    write: Write, sample: Sample, encode: Encode
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    png = encode(noise)
    folder = write({"train": [[sample(0, 40), sample(1, 40, png=png[:300] + bytes(300) + png[600:]), sample(2, 40)]]})
    with load(open_index(folder, "train"), batch_size=3, channels="rgb") as loader:
        for _ in range(2):
            with pytest.raises(
                DataError, match=r"set/train-000000\.tar: s00001: image: damaged PNG .*mtgen shards validate"
            ):
                next(loader)


def test_a_shard_that_changes_while_it_is_read_is_an_error(numbered: Path) -> None:
    index = open_index(numbered, "train")
    shard = numbered / "train-000001.tar"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(DataError, match=r"train-000001\.tar: s000\d\d: \w+ differs from what was indexed"):
        batches(index, 5)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_closing_ends_the_thread(count: int, numbered: Path) -> None:
    before = threading.active_count()
    loader = load(open_index(numbered, "train"))
    assert len(list(islice(loader, count))) == count
    loader.close()
    loader.close()
    assert threading.active_count() == before
    with pytest.raises(ValueError, match="closed"):
        next(loader)


def test_iterating_over_a_split_gives_it_once_in_order_with_a_smaller_last_batch(numbered: Path) -> None:
    parts = list(once(open_index(numbered, "train")))
    assert [len(part) for part in parts] == [25, 25, 10]
    assert np.concatenate([number(part) for part in parts]).tolist() == list(range(60))
    assert torch.cat([part.position for part in parts]).tolist() == list(range(60))


def test_iterating_over_a_split_stops_at_its_limit(numbered: Path) -> None:
    parts = once(open_index(numbered, "train"), limit=31)
    assert [len(part) for part in parts] == [25, 6]


@pytest.mark.parametrize(("world", "start"), [(2, 0), (3, 0), (7, 0), (1, 2), (3, 4)])
def test_whole_batches_are_distributed_round_robin(world: int, start: int, numbered: Path) -> None:
    index = open_index(numbered, "train")
    alone = [number(part).tolist() for part in once(index, batch_size=9)][start:]
    workers = [
        [number(part).tolist() for part in once(index, batch_size=9, rank=rank, world=world, start=start)]
        for rank in range(world)
    ]
    assert sum(len(worker) for worker in workers) == len(alone)
    assert [workers[n % world][n // world] for n in range(len(alone))] == alone


def test_leaving_the_iteration_early_ends_its_thread(numbered: Path) -> None:
    before = threading.active_count()
    parts = once(open_index(numbered, "train"), batch_size=5)
    next(iter(parts))
    del parts
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("name", "resolution", "channels"), [("digits", 32, "gray"), ("cifar10", 32, "rgb"), ("coco128", 64, "rgb")]
)
def test_real_shards(name: str, resolution: int, channels: str, shared_data: Callable[[str], Path]) -> None:
    index = open_index(shared_data(name), "train")
    card = json.loads((shared_data(name) / "dataset.json").read_text())
    for batch in batches(index, 4, batch_size=32, resolution=resolution, channels=channels, crop=0.5, flip=True):
        assert batch.image.shape == (32, 3 if channels == "rgb" else 1, resolution, resolution)
        assert batch.image.abs().max() <= 1 and batch.image.std() > 0.1
        assert batch.label.max() < len(card["classes"])
        known = batch.mask[batch.mask != 255]
        assert batch.present["mask"].all() == (name != "cifar10") and (
            not len(known) or known.max() < len(card["mask_classes"])
        )


def test_the_mask_of_a_real_digit_covers_its_pixels(shared_data: Callable[[str], Path]) -> None:
    for batch in batches(open_index(shared_data("digits"), "train"), 4, resolution=28, batch_size=32):
        assert torch.equal(
            batch.mask, torch.where(batch.image[:, 0] > 63.5 / 127.5 - 1, batch.label[:, None, None] + 1, 0)
        )


def test_iterating_over_a_split_returns_all_components(write: Write, sample: Sample) -> None:
    boxes = json.dumps({"width": 8, "height": 8, "boxes": [[0, 0, 4, 8, 3]]}).encode()
    full = [sample(i, json=boxes, txt=b"hi", wav=wav(samples(0.5, 8_000, 440), 8_000)) for i in range(5)]
    index = open_index(write({"test": [[*full, sample(5)]]}), "test")
    sound = SoundConfig(mels=16, seconds=0.5)
    settings: dict[str, Any] = {"components": COMPONENTS, "max_boxes": 2, "max_tokens": 4, "sound": sound}
    (batch,) = once(index, **settings, crop=0.2, flip=True, color_jitter=0.5)
    assert batch.present.keys() == batch.step_present.keys() == set(COMPONENTS)
    assert batch.boxes is not None and batch.boxes[0].tolist() == [[0, 0, 0.5, 1, 3], [0, 0, 0, 0, -1]]
    assert batch.labels is not None and batch.labels.sum(1).tolist() == [1] * 5 + [0]
    assert batch.caption is not None and batch.caption.tolist() == [[ord("h") + 1, ord("i") + 1, 0, 0]] * 5 + [[0] * 4]
    assert batch.sound is not None and batch.sound.shape == (6, 16, 50) and (batch.sound[5] == 0).all()
    (again,) = once(index, **settings)  # no augmentation: an evaluation does not depend on the training's
    assert torch.equal(again.image, batch.image) and torch.equal(again.boxes, batch.boxes)


def test_tags_are_known_without_boxes_and_boxes_without_tags(write: Write, sample: Sample) -> None:
    boxes = json.dumps({"boxes": [[0, 0, 4, 8, 3]]}).encode()
    index = open_index(write({"test": [[sample(0, json=boxes), sample(1, json=b'{"labels": [1, 3]}')]]}), "test")
    settings: dict[str, Any] = {"components": ("boxes", "tags"), "max_boxes": 1}
    (batch,) = once(index, **settings)
    assert batch.present["boxes"].tolist() == [True, False] and batch.present["tags"].all()
    assert batch.labels is not None and batch.labels.nonzero().tolist() == [[0, 3], [1, 1], [1, 3]]
    keep_labels(index, {"boxes": 0.0, "tags": 1.0}, seed=0)
    (batch,) = once(index, **settings)
    assert batch.labels is not None and batch.labels.nonzero().tolist() == [[0, 3], [1, 1], [1, 3]]
    assert batch.boxes is not None and (batch.boxes[..., 4] == -1).all() and not batch.present["boxes"].any()


def test_a_damaged_sample_is_an_error_in_evaluation_even_with_skip(write: Write, sample: Sample) -> None:
    folder = write({"test": [[sample(i, txt=b"\xff" if i == 2 else b"x") for i in range(4)]]})
    with pytest.raises(DataError, match="s00002: caption: not UTF-8"):
        list(once(open_index(folder, "test"), components=("caption",), on_damage="skip"))


def test_without_a_mixture_there_is_one_domain(numbered: Path) -> None:
    index = open_index(numbered, "train")
    (batch,) = batches(index, 1)
    assert index.domains == [index.card.name]
    assert batch.domain is not None and batch.domain.dtype == torch.int64 and batch.domain.tolist() == [0] * 12
