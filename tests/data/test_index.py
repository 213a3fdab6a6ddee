"""The index locates every byte, notices every change, and reports all problems at once."""

import io
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtgen.data.dataset_card import read_card
from mtgen.data.index import open_index
from mtgen.data.index_build import IndexBuilder
from mtgen.data.index_store import dataset_index_path, index_dataset, parse_part, user_index_path
from mtgen.errors import ConfigError, DataError
from mtgen.storage.source import open_source

Write = Callable[..., Path]
Sample = Callable[..., dict[str, Any]]
Encode = Callable[..., bytes]


def error_message(folder: Path, split: str = "train") -> str:
    with pytest.raises(DataError) as raised:
        open_index(folder, split)
    return str(raised.value)


def edit(folder: Path, **card: Any) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | card))


def raw_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))


def member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    return info, data


def test_rows_are_the_samples_that_webdataset_reads(numbered: Path) -> None:
    index = open_index(numbered, "train")
    shards = [str(numbered / f"train-{i:06d}.tar") for i in range(2)]
    names = {"png": "image", "cls": "class", "mask.png": "mask"}
    expected = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
    assert len(index) == len(expected) == 60
    for i, sample in enumerate(expected):
        assert index.key(i) == sample["__key__"]
        assert index.shard(i) == Path(sample["__url__"]).name
        for suffix, component in names.items():
            assert (component == "image" or index.present[component][i]) == (suffix in sample)
            if suffix in sample:
                assert index.read(i, component) == sample[suffix]


def test_columns_have_labels_sizes_and_present_components(numbered: Path) -> None:
    index = open_index(numbered, "train")
    number = np.arange(60)
    assert np.array_equal(index.label, np.where(number % 3 == 0, -1, number % 10))
    assert np.array_equal(index.present["class"], number % 3 != 0)
    assert np.array_equal(index.present["mask"], number % 4 != 0)
    assert not index.present["caption"].any() and not index.present["sound"].any() and not index.present["boxes"].any()
    assert (index.width == 8).all() and (index.height == 8).all()


def test_every_component_is_found(write: Write, encode: Encode) -> None:
    image = np.zeros((4, 6), np.uint8)
    parts = {
        "mask.png": encode(image),
        "json": b'{"boxes": []}',
        "txt": b"a word",
        "flac": b"fLaC",
        "cls": b"3\n",
        "npy": b"other",
    }
    for suffix, form in (("jpg", "JPEG"), ("jpeg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")):
        folder = write({"train": [[{"__key__": "a/b", suffix: encode(image, form), **parts}]]}, name=suffix)
        index = open_index(folder, "train")
        assert index.key(0) == "a/b" and (index.width[0], index.height[0], index.label[0]) == (6, 4, 3)
        assert all(column[0] for column in index.present.values())
        assert index.read(0, "sound") == b"fLaC" and index.read(0, "caption") == b"a word"


def test_a_missing_component_cannot_be_read(numbered: Path) -> None:
    with pytest.raises(KeyError, match="s00000 has no mask"):
        open_index(numbered, "train").read(0, "mask")


def test_splits_are_separate(numbered: Path) -> None:
    test = open_index(numbered, "test")
    assert len(test) == 7 and test.key(0) == "s00060" and test.shard(0) == "test-000000.tar"


def test_opening_writes_to_the_cache_and_not_to_the_data_set(numbered: Path) -> None:
    before = sorted(numbered.iterdir())
    open_index(numbered, "train")
    assert sorted(numbered.iterdir()) == before
    assert (user_index_path(numbered) / "latest").is_file()


def test_an_index_that_is_up_to_date_is_used(numbered: Path) -> None:
    open_index(numbered, "train")
    written = (user_index_path(numbered) / "latest").stat().st_mtime_ns
    open_index(numbered, "train")
    assert (user_index_path(numbered) / "latest").stat().st_mtime_ns == written


def test_an_index_beside_the_data_is_used(numbered: Path) -> None:
    before = open_index(numbered, "train").fingerprint
    shutil.rmtree(user_index_path(numbered))
    assert Path(index_dataset(numbered)).parent == dataset_index_path(numbered)
    index = open_index(numbered, "train")
    assert len(index) == 60 and index.fingerprint == before and index.read(41, "image")
    assert not (user_index_path(numbered) / "latest").exists()
    assert read_card(numbered).model_extra == {}


def test_indexing_again_replaces_the_index_beside_the_data(numbered: Path, write: Write, sample: Sample) -> None:
    index_dataset(numbered)
    index_dataset(numbered)
    assert len(list(dataset_index_path(numbered).iterdir())) == 3
    os.utime(numbered / "train-000001.tar", (1, 1))
    index_dataset(numbered)
    assert len(list(dataset_index_path(numbered).iterdir())) == 3 and len(open_index(numbered, "train")) == 60


def test_a_stale_index_beside_the_data_is_built_again_in_the_cache(
    numbered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index_dataset(numbered)
    before = sorted(dataset_index_path(numbered).iterdir())
    os.utime(numbered / "train-000001.tar", (1, 1))
    assert len(open_index(numbered, "train")) == 60
    assert "its index is not that of its shards; indexing it again in" in capsys.readouterr().err
    assert sorted(dataset_index_path(numbered).iterdir()) == before


def test_an_index_of_an_earlier_version_is_replaced_with_a_line(
    numbered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for old in (numbered / "index.parquet", user_index_path(numbered).with_suffix(".parquet")):
        old.parent.mkdir(exist_ok=True)
        old.write_bytes(b"PAR1")
    assert len(open_index(numbered, "train")) == 60
    assert capsys.readouterr().err.count("an index of an earlier version of mtgen") == 2
    assert len(open_index(numbered, "train")) == 60 and not capsys.readouterr().err


def test_parts_of_an_index_are_completed_by_a_call_without_a_part(numbered: Path) -> None:
    whole = open_index(numbered, "train")
    shutil.rmtree(user_index_path(numbered))
    for number in range(2):
        index_dataset(numbered, part=(number, 2))
    assert len(list((dataset_index_path(numbered) / "parts").iterdir())) == 3
    for shard in numbered.glob("*.tar"):
        status = shard.stat()
        shard.write_bytes(bytes(status.st_size))  # an error, if it were read again
        os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    index_dataset(numbered)
    index = open_index(numbered, "train")
    assert index.fingerprint == whole.fingerprint and [index.key(i) for i in range(60)] == [
        whole.key(i) for i in range(60)
    ]
    assert not (dataset_index_path(numbered) / "parts").exists()


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b"])
def test_an_impossible_part_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write for example 1/16"):
        parse_part(text)


def test_columns_are_mapped_into_memory(numbered: Path) -> None:
    index = open_index(numbered, "train")
    for column in (index.label, index.width, index.height, index.present["class"]):
        assert not column.flags.owndata and not column.flags.writeable


def test_a_changed_shard_is_indexed_again(numbered: Path, write: Write, sample: Sample) -> None:
    before = open_index(numbered, "test")
    assert before.label[0] == -1
    write({"train": [[sample(1)]], "test": [[sample(i) for i in range(4)]]})
    after = open_index(numbered, "test")
    assert len(after) == 4 and after.label[1] == 1 and after.fingerprint != before.fingerprint


def test_a_changed_card_is_checked_again(numbered: Path) -> None:
    open_index(numbered, "train")
    edit(numbered, classes=["only one"])
    assert "class number 1, dataset.json names 0 to 0" in error_message(numbered)


def test_a_damaged_index_is_built_again(numbered: Path) -> None:
    open_index(numbered, "train")
    for kind in ("shards-*", "samples-*", "latest"):
        (path, *_) = sorted(user_index_path(numbered).glob(kind))
        whole = path.read_bytes()
        for damage in (b"", whole[: len(whole) // 2], b"ARROW1" + bytes(200) + b"ARROW1"):
            path.write_bytes(damage)
            assert len(open_index(numbered, "train")) == 60 and len(open_index(numbered, "test")) == 7


def test_bytes_that_changed_after_the_index_was_opened_are_an_error(numbered: Path) -> None:
    index = open_index(numbered, "train")
    shard = numbered / "train-000000.tar"
    shard.write_bytes(shard.read_bytes().replace(index.read(7, "image"), bytes(len(index.read(7, "image")))))
    assert index.read(6, "image")
    with pytest.raises(
        DataError, match=r"train-000000\.tar: s00007: image differs from what was indexed.*mtgen shards validate"
    ):
        index.read(7, "image")


def test_a_shard_that_disappears_is_an_error(numbered: Path) -> None:
    index = open_index(numbered, "train")
    (numbered / "train-000001.tar").unlink()
    with pytest.raises(DataError, match=r"train-000001\.tar: s00050: cannot be read \(No such file"):
        index.read(50, "image")


def _first_bytes(folder: Path, cache: str) -> tuple[int, bytes]:
    os.environ["MTGEN_CACHE"] = cache
    index = open_index(folder, "train")
    return len(index), index.read(41, "image")


def test_several_processes_build_the_same_index_as_one(write: Write, sample: Sample, tmp_path: Path) -> None:
    folder = write({"train": [[sample(10 * s + i) for i in range(10)] for s in range(5)], "test": [[sample(90)]]})
    counts: list[int] = []
    digests = []
    for processes in (1, 3):
        builder = IndexBuilder(open_source(folder), read_card(folder), processes=processes)
        builder.read_shards(progress=lambda done, total: counts.append(done))
        digests.append(builder.write(tmp_path / "index"))
    assert digests[0] == digests[1] and counts[:6] == counts[6:]


def test_a_shard_that_another_process_finds_damaged_is_named(write: Write, sample: Sample) -> None:
    folder = write({"train": [[sample(10 * s + i) for i in range(3)] for s in range(3)]})
    shard = folder / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"train-000001\.tar: truncated"):
        index_dataset(folder, processes=2)


def test_several_processes_can_build_the_index_at_the_same_time(numbered: Path) -> None:
    with ProcessPoolExecutor(4) as pool:
        found = [
            work.result() for work in [pool.submit(_first_bytes, numbered, os.environ["MTGEN_CACHE"]) for _ in range(8)]
        ]
    assert found == [(60, open_index(numbered, "train").read(41, "image"))] * 8
    assert sorted(path.name.partition("-")[0] for path in user_index_path(numbered).iterdir()) == [
        "latest",
        "lock",
        "samples",
        "samples",
        "shards",
    ]


def test_an_index_can_be_read_after_a_fork(numbered: Path) -> None:
    index = open_index(numbered, "train")
    expected = index.read(5, "image")
    child = os.fork()
    if child == 0:
        os._exit(0 if index.read(5, "image") == expected and index.read(40, "image") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert index.read(5, "image") == expected


def test_no_shard_stays_open_after_the_index_is_deleted(numbered: Path) -> None:
    def held() -> list[str]:
        links = (os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())
        return [link for link in links if link.startswith(str(numbered))]

    index = open_index(numbered, "train")
    for i in range(60):
        index.read(i, "image")
    assert len(held()) == 2
    del index
    assert held() == []


def test_the_fingerprint_does_not_depend_on_path_and_time(write: Write, sample: Sample) -> None:
    one, two = (write({"train": [[sample(i) for i in range(5)]]}, name="set") for _ in range(2))
    first = open_index(one, "train").fingerprint
    moved = one.rename(one.parent / "elsewhere")
    os.utime(moved / "train-000000.tar", (1, 1))
    assert open_index(moved, "train").fingerprint == first and len(first) == 64 and two == one


@pytest.mark.parametrize("change", [{"cls": b"9"}, {"mask.png": None}, {"txt": b"new"}])
def test_the_fingerprint_depends_on_every_component(change: dict[str, Any], write: Write, sample: Sample) -> None:
    folders = [
        write({"train": [[sample(0), sample(1, **c)]]}, name=f"set{i}", **{}) for i, c in enumerate(({}, change))
    ]
    for folder in folders:
        edit(folder, name="same")
    assert open_index(folders[0], "train").fingerprint != open_index(folders[1], "train").fingerprint


def test_progress_counts_up_to_the_total(numbered: Path) -> None:
    seen: list[tuple[int, int]] = []
    index_dataset(numbered, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(35, 67), (60, 67), (67, 67)]


def test_an_unknown_split_suggests_the_nearest(numbered: Path) -> None:
    assert error_message(numbered, "trian").endswith(
        "no split 'trian'; did you mean 'train'? possible: train, test; `mtgen shards split` makes new ones"
    )


def test_a_missing_shard(numbered: Path) -> None:
    (numbered / "train-000001.tar").unlink()
    assert (
        error_message(numbered)
        .splitlines()[0]
        .startswith(f"{numbered}/train-000001.tar: dataset.json names this shard")
    )


def test_a_wrong_number_of_samples_names_both_numbers(numbered: Path) -> None:
    edit(numbered, splits={"train": {"samples": 61, "shards": "train-{000000..000001}.tar"}})
    assert "splits.train.samples=61, but its shards have 60 samples" in error_message(numbered)


def test_a_split_without_samples(write: Write) -> None:
    assert "splits.train: its shards have no samples" in error_message(write({"train": [[]]}))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fraction=st.floats(0.001, 0.999))
def test_a_truncated_tar_is_named_with_its_length(fraction: float, write: Write, sample: Sample) -> None:
    folder = write({"train": [[sample(i) for i in range(10)]]})
    shard = folder / "train-000000.tar"
    with tarfile.open(shard) as tar:
        length = int(fraction * (tar.getmembers()[-1].offset_data + 512))
    os.truncate(shard, length)
    assert f"train-000000.tar: truncated at byte {length:,}" in error_message(folder) or length == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_one_error_or_harmless_and_never_a_traceback(
    position: float, bit: int, write: Write, sample: Sample
) -> None:
    folder = write({"train": [[sample(i, txt=b"a word") for i in range(10)]]})
    shard = folder / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    data[int(position * len(data))] ^= 1 << bit
    shard.write_bytes(data)
    try:
        assert len(open_index(folder, "train")) == 10
    except DataError as error:
        assert "train-000000.tar: " in str(error).splitlines()[0]


def test_a_file_that_is_not_a_tar(numbered: Path) -> None:
    (numbered / "train-000000.tar").write_bytes(b"not a tar" * 1000)
    assert "train-000000.tar: not a readable tar" in error_message(numbered)


def test_an_empty_file_is_not_a_tar(numbered: Path) -> None:
    (numbered / "train-000000.tar").write_bytes(b"")
    assert "train-000000.tar: not a readable tar file (empty file; it has 0 bytes)" in error_message(numbered)


def test_a_damaged_header_does_not_count_as_the_end_of_the_tar(write: Write, sample: Sample) -> None:
    folder = write({"train": [[sample(i) for i in range(10)]]})
    shard = folder / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        at = tar.getmembers()[6].offset
    data[at + 20] ^= 0xFF
    shard.write_bytes(data)
    assert f"train-000000.tar: damaged header at byte {at:,}, the rest" in error_message(folder)


def test_a_header_with_a_size_beyond_the_file(write: Write, sample: Sample) -> None:
    folder = write({"train": [[sample(0)]]})
    info = tarfile.TarInfo("s9.png")
    info.size = 10**9
    (folder / "train-000000.tar").write_bytes(info.tobuf() + bytes(10240))
    assert "truncated at byte 10,752, inside s9.png" in error_message(folder)


def test_two_tars_in_one_file(write: Write, sample: Sample) -> None:
    folder = write({"train": [[sample(0)]]})
    shard = folder / "train-000000.tar"
    shard.write_bytes(shard.read_bytes() * 2)
    assert "but more data follows (two tar files in one?)" in error_message(folder)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_special_files_are_refused(kind: bytes, write: Write, sample: Sample, encode: Encode) -> None:
    folder = write({"train": [[sample(0)]]})
    link, _ = member("s1.png", b"", kind)
    link.linkname = "/etc/passwd"
    raw_tar(folder / "train-000000.tar", [member("s0.png", encode(np.zeros((2, 2), np.uint8))), (link, b"")])
    assert "train-000000.tar: s1.png: is a link or another special file" in error_message(folder)


@pytest.mark.parametrize("name", ["../s1.png", "a/../../s1.png", "/s1.png"])
def test_names_that_lead_outside_are_refused(name: str, write: Write, sample: Sample, encode: Encode) -> None:
    folder = write({"train": [[sample(0)]]})
    raw_tar(folder / "train-000000.tar", [member(name, encode(np.zeros((2, 2), np.uint8)))])
    assert f"{name}: its name is absolute or has '..'" in error_message(folder)


def test_names_that_are_not_utf8_are_refused(write: Write, sample: Sample, encode: Encode) -> None:
    folder = write({"train": [[sample(0)]]})
    info, data = member("sX.png", encode(np.zeros((2, 2), np.uint8)))
    with tarfile.open(folder / "train-000000.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        info.name = "s\xff.png"
        tar.addfile(info, io.BytesIO(data))
    assert r"s\udcff.png: its name is not UTF-8" in error_message(folder)


def test_folders_in_a_tar_are_ignored(write: Write, sample: Sample, encode: Encode) -> None:
    folder = write({"train": [[sample(0)]]})
    raw_tar(
        folder / "train-000000.tar",
        [member("./", b"", tarfile.DIRTYPE), member("./s0.png", encode(np.zeros((2, 2), np.uint8)))],
    )
    assert open_index(folder, "train").key(0) == "./s0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"png": None}, "s00001: has no image"),
        ({"png": b"junk" * 20}, "s00001: image: not a JPEG, PNG or WebP file (it starts with b'junkjunk')"),
        ({"png": b"\x89PNG\r\n\x1a\n" + b"junk" * 20}, "s00001: image: damaged PNG"),
        ({"cls": b"10"}, "s00001: class number 10, dataset.json names 0 to 9"),
        ({"cls": b"-1"}, "s00001: class number -1, dataset.json names 0 to 9"),
        ({"cls": b"seven"}, "s00001: .cls contains b'seven'"),
        ({"cls": b""}, "s00001: .cls is empty (0 bytes)"),
        ({"png": b""}, "s00001: .png is empty (0 bytes)"),
        ({"jpg": b"another"}, "s00001: image twice (.jpg and .png)"),
        ({"mask.png": b"junk" * 20}, "s00001: mask: not a PNG file"),
    ],
)
def test_a_sample_that_cannot_be_used_is_named(
    changes: dict[str, Any], message: str, write: Write, sample: Sample
) -> None:
    folder = write({"train": [[sample(0), sample(1, **changes), sample(2)]]})
    lines = error_message(folder).splitlines()
    assert f"{folder}/train-000000.tar: {message}" in "\n".join(lines)
    assert lines[-1].startswith("`mtgen shards validate")


def test_a_mask_of_another_size_names_both_sizes(write: Write, sample: Sample, encode: Encode) -> None:
    folder = write({"train": [[sample(0), sample(1, **{"mask.png": encode(np.zeros((8, 9), np.uint8))})]]})
    assert "s00001: mask: 9x8 pixels, its image has 8x8" in error_message(folder)


def test_a_mask_in_color_is_refused(write: Write, sample: Sample, encode: Encode) -> None:
    folder = write({"train": [[sample(0, **{"mask.png": encode(np.zeros((8, 8, 3), np.uint8))})]]})
    assert "s00000: mask: bit depth 8, color type 2; save masks as 8-bit gray PNG" in error_message(folder)


def test_masks_without_names_for_their_classes_are_refused(write: Write, sample: Sample) -> None:
    assert "s00000: has a mask, but dataset.json names no mask_classes" in error_message(
        write({"train": [[sample(0)]]}, mask_classes=0)
    )


@pytest.mark.parametrize("shards", [[[0, 1, 0]], [[0, 1], [2, 0]]])
def test_two_samples_with_one_key_are_named(shards: list[list[int]], write: Write, sample: Sample) -> None:
    folder = write({"train": [[sample(i) for i in shard] for shard in shards]})
    last = f"train-{len(shards) - 1:06d}.tar"
    assert (
        f"train-000000.tar: s00000: 2 samples of split 'train' have this key, the second is in {last}"
        in error_message(folder)
    )


def test_two_splits_may_have_the_same_key(write: Write, sample: Sample) -> None:
    assert len(open_index(write({"train": [[sample(0)]], "test": [[sample(0)]]}), "train")) == 1


def test_up_to_twenty_problems_of_the_split_are_listed_at_once(write: Write, sample: Sample) -> None:
    folder = write({"train": [[sample(i, cls=b"77") for i in range(30)]], "test": [[sample(0, png=None)]]})
    lines = error_message(folder).splitlines()
    assert len(lines) == 22 and lines[20] == "and 10 more problems"
    assert len(error_message(folder, "test").splitlines()) == 2


def test_a_cache_that_cannot_be_written_is_one_error(
    numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MTGEN_CACHE", str(tmp_path / "file"))
    assert "the index cannot be written (Not a directory); set MTGEN_CACHE to" in error_message(numbered)


@pytest.mark.parametrize(
    ("name", "split", "count"), [("digits", "train", 4000), ("cifar10", "test", 2000), ("coco128", "train", 128)]
)
def test_real_shards(name: str, split: str, count: int, shared_data: Callable[[str], Path]) -> None:
    index = open_index(shared_data(name), split)
    assert len(index) == count
    assert all(index.read(i, "image") for i in range(0, count, 97))


def test_only_new_and_changed_shards_are_read_again(numbered: Path, write: Write, sample: Sample) -> None:
    open_index(numbered, "train")
    first, second = numbered / "train-000000.tar", numbered / "train-000001.tar"
    status = first.stat()
    first.write_bytes(bytes(status.st_size))  # an error, if it were read
    os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.utime(second, (1, 1))
    index = open_index(numbered, "train")
    assert len(index) == 60 and index.read(41, "image") and index.label[1] == 1


def test_an_index_with_reused_rows_equals_a_new_one(numbered: Path) -> None:
    open_index(numbered, "test")
    os.utime(numbered / "train-000001.tar", (1, 1))
    reused = open_index(numbered, "train")
    shutil.rmtree(user_index_path(numbered))
    new = open_index(numbered, "train")
    assert reused.fingerprint == new.fingerprint and np.array_equal(reused.label, new.label)
    assert [reused.key(i) for i in range(60)] == [new.key(i) for i in range(60)]


BAD = [{"cls": b"77"}, {"png": b""}, {"mask.png": b"junk" * 20}, {"png": None}]


@pytest.mark.parametrize("changes", BAD)
def test_skipping_leaves_a_bad_sample_out_and_names_it(changes: dict[str, Any], write: Write, sample: Sample) -> None:
    folder = write({"train": [[sample(0), sample(1, **changes), sample(2)], [sample(3)]]})
    for _ in range(2):  # when the index is built, and when it is opened again
        index = open_index(folder, "train", on_damage="skip", damage_limit=0.5)
        assert [index.key(i) for i in range(len(index))] == ["s00000", "s00002", "s00003"]
        assert {problem.key for problem in index.problems} == {"s00001"}
        assert index.read(1, "class") == b"2"
    assert "s00001" in error_message(folder)


def test_skipping_keeps_the_samples_before_a_truncation(write: Write, sample: Sample) -> None:
    folder = write({"train": [[sample(i) for i in range(10)], [sample(10)]]})
    shard = folder / "train-000000.tar"
    with tarfile.open(shard) as tar:
        os.truncate(shard, tar.getmembers()[13].offset_data + 10)
    index = open_index(folder, "train", on_damage="skip", damage_limit=0.9)
    assert [index.key(i) for i in range(len(index))] == ["s00000", "s00001", "s00002", "s00003", "s00010"]
    assert "truncated" in index.problems[0].what


def test_skipping_keeps_the_first_of_two_samples_with_one_key(write: Write, sample: Sample) -> None:
    folder = write({"train": [[sample(0), sample(1)], [sample(1, cls=b"9"), sample(2)]]})
    index = open_index(folder, "train", on_damage="skip", damage_limit=0.5)
    assert [index.key(i) for i in range(len(index))] == ["s00000", "s00001", "s00002"] and index.label[1] == 1


def test_more_damage_than_the_limit_is_an_error_with_counts(write: Write, sample: Sample) -> None:
    folder = write({"train": [[sample(i, **({"cls": b"77"} if i < 2 else {})) for i in range(10)]]})
    with pytest.raises(
        DataError, match=r"2 of 10 samples of split 'train' cannot be used \(2 class\), more than damage_limit=0\.1"
    ):
        open_index(folder, "train", on_damage="skip", damage_limit=0.1)
    assert len(open_index(folder, "train", on_damage="skip", damage_limit=0.2)) == 8


@pytest.mark.parametrize("name", ["../s1.png", "/s1.png"])
def test_skipping_never_reads_a_member_with_an_outside_path(
    name: str, write: Write, sample: Sample, encode: Encode
) -> None:
    folder = write({"train": [[sample(0)]]})
    raw_tar(
        folder / "train-000000.tar",
        [member(name, encode(np.zeros((2, 2), np.uint8))), member("s0.png", encode(np.ones((2, 2), np.uint8)))],
    )
    index = open_index(folder, "train", on_damage="skip", damage_limit=0.9)
    assert [index.key(i) for i in range(len(index))] == ["s0"] and "absolute or has '..'" in index.problems[0].what


def test_skipping_leaves_out_a_sample_with_a_link(write: Write, encode: Encode) -> None:
    image = encode(np.zeros((2, 2), np.uint8))
    folder = write({"train": [[{"__key__": "a", "png": image}, {"__key__": "b", "png": image}]]})
    raw_tar(
        folder / "train-000000.tar",
        [member("a.png", image), member("a.cls", b"", tarfile.SYMTYPE), member("b.png", image)],
    )
    index = open_index(folder, "train", on_damage="skip", damage_limit=0.5)
    assert [index.key(i) for i in range(len(index))] == ["b"]


def test_a_header_that_claims_ten_gigabytes_is_a_truncation(write: Write, sample: Sample) -> None:
    folder = write({"train": [[sample(0)]]})
    info = tarfile.TarInfo("s1.png")
    info.size = 10 * 2**30
    (folder / "train-000000.tar").write_bytes(info.tobuf() + bytes(2048))
    assert "train-000000.tar: truncated at byte 3,584, inside s1.png" in error_message(folder)


@pytest.mark.parametrize("side", [9000, 20_000, 60_000])
def test_an_image_that_claims_absurd_dimensions_is_refused(
    side: int, write: Write, sample: Sample, encode: Encode
) -> None:
    data = bytearray(encode(np.zeros((8, 8), np.uint8)))
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    folder = write({"train": [[sample(0), sample(1, png=bytes(data), **{"mask.png": None})]]})
    message = error_message(folder)
    refused = f"s00001: image: {side}x{side} pixels, the limit is" in message
    assert refused or "s00001: image: damaged PNG (Image size" in message


@pytest.mark.parametrize(("form", "suffix"), [("JPEG", "jpg"), ("PNG", "png")])
def test_an_image_without_its_end_is_noticed_when_indexing(
    form: str, suffix: str, write: Write, sample: Sample, encode: Encode
) -> None:
    noise = encode(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8), form)
    folder = write({"train": [[sample(1, **{"png": None, suffix: noise[:-20]})]]})
    assert f"s00001: image: damaged {form} (truncated" in error_message(folder)
