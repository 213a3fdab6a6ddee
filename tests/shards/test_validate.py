"""Validation finds and names everything that is wrong with a sample, and leaves its neighbors intact."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.loading import load
from helpers.sounds import DAMAGED, GOOD, flac, float_wav, samples, wav
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtgen.data.boxes import annotation
from mtgen.data.index import open_index
from mtgen.data.shard_scan import Header, StoredComponent
from mtgen.data.shard_scan import StoredSample as Scanned
from mtgen.errors import DataError
from mtgen.schema import DatasetCard
from mtgen.shards.make import make
from mtgen.shards.validate import inspect, validate

Write = Callable[..., Path]
Sample = Callable[..., dict[str, Any]]
Encode = Callable[..., bytes]

CARD = DatasetCard(name="x", classes=["a"], mask_classes=["a", "b"], splits={})
NOISE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def boxes(*rows: Any, **more: Any) -> bytes:
    return json.dumps({"width": 8, "height": 8, "boxes": rows} | more).encode()


def test_a_valid_data_set_has_no_problems_and_is_counted(numbered: Path) -> None:
    report = validate(numbered)
    assert report.problems == []
    train = report.splits["train"]
    assert train.samples == 60 and train.components == {
        "class": 40,
        "mask": 45,
        "boxes": 0,
        "tags": 0,
        "caption": 0,
        "sound": 0,
    }
    assert sum(train.classes.values()) == 40 and train.classes["class 1"] == sum(i % 3 != 0 for i in range(1, 60, 10))
    assert report.text().splitlines() == [
        "train: 60 samples, 40 with class, 45 with mask",
        "test: 7 samples, 4 with class, 5 with mask",
        "no problems",
    ]


def test_a_sample_with_all_components_is_valid(write: Write, sample: Sample) -> None:
    full = sample(
        0, json=boxes([0, 0, 8, 8, 3], [1.5, 2, 3, 4, 0], labels=[0, 3]), txt="ein Wörtchen".encode(), wav=GOOD
    )
    assert validate(write({"train": [[full, sample(1, json=boxes()), sample(2, json=b"{}")]]})).problems == []


CASES: list[tuple[dict[str, Any], str]] = [
    ({"png": None}, "has no image"),
    ({"png": b"x" * 50}, "image: not a JPEG, PNG or WebP file"),
    ({"cls": b"10"}, "class number 10, dataset.json names 0 to 9"),
    ({"cls": b"x"}, ".cls contains b'x'"),
    ({"cls": b""}, ".cls is empty"),
    ({"webp": b"x"}, "image twice"),
    ({"txt": b"caf\xe9"}, "caption: not UTF-8 at byte 3"),
    ({"json": b"{"}, "json: not valid JSON"),
    ({"json": b"\xff"}, "json: not valid JSON"),
    ({"json": b"[" * 100_000}, "json: not valid JSON"),
    ({"json": b"[1]"}, "json: a list; the JSON has to be an object"),
    ({"json": boxes(width=9)}, "json: width 9, its image has 8"),
    ({"json": b'{"boxes": 3}'}, "json: boxes and labels have to be lists"),
    ({"json": boxes([0, 0, 9, 8, 0])}, "json: box 0 [0, 0, 9, 8, 0]: outside its image of 8x8"),
    ({"json": boxes([-1, 0, 5, 8, 0])}, "outside its image of 8x8"),
    ({"json": boxes([5, 0, 2, 8, 0])}, "empty or reversed"),
    ({"json": boxes([0, 4, 2, 4, 0])}, "empty or reversed"),
    ({"json": boxes([0, 0, float("nan"), 4, 0])}, "not finite"),
    ({"json": boxes([0, 0, float("inf"), 4, 0])}, "not finite"),
    ({"json": boxes([0, 0, 10**400, 4, 0])}, "outside its image"),
    ({"json": boxes([0, 0, 4, 4, 10])}, "class 10; possible: 0 to 9"),
    ({"json": boxes([0, 0, 4, 4, 1.5])}, "class 1.5; possible: 0 to 9"),
    ({"json": boxes([0, 0, 4, 4])}, "a box is [x0, y0, x1, y1, class]"),
    ({"json": boxes("box")}, "a box is [x0, y0, x1, y1, class]"),
    ({"json": boxes(labels=[11])}, "json: label 11; possible: 0 to 9"),
    ({"json": boxes(labels=["cat"])}, 'json: label "cat"'),
    *(({"wav": data}, f"sound: {message}") for data, message in DAMAGED.values() if data),
    ({"flac": b"x" * 50}, "sound: not a readable WAV or FLAC"),
]


@pytest.mark.parametrize(("changes", "message"), CASES, ids=[message[:40] for _, message in CASES])
def test_a_bad_sample_is_one_problem_with_its_shard_and_key(
    changes: dict[str, Any], message: str, write: Write, sample: Sample
) -> None:
    report = validate(write({"train": [[sample(0)], [sample(1), sample(2, **changes), sample(3)]]}))
    (problem,) = report.problems
    assert (problem.file, problem.key) == ("train-000001.tar", "s00002")
    assert message in problem.what and "\n" not in problem.what and len(problem.what) < 250
    assert report.splits["train"].samples == 4


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_damaged_image_is_found(form: str, write: Write, sample: Sample, encode: Encode) -> None:
    whole = encode(NOISE, form, **({"lossless": True} if form == "WEBP" else {}))
    suffix = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}[form]
    changes = {"png": None, suffix: whole[: len(whole) - 30]}
    (problem,) = validate(write({"train": [[sample(0), sample(1, **changes)]]})).problems
    assert problem.key == "s00001" and "image: damaged" in problem.what


def test_a_damaged_mask_is_found(write: Write, sample: Sample, encode: Encode) -> None:
    mask = encode(NOISE[..., 0] % 11)
    (problem,) = validate(write({"train": [[sample(0, **{"mask.png": mask[:-30]})]]})).problems
    assert "mask: damaged PNG" in problem.what


def test_a_mask_of_another_size_is_found(write: Write, sample: Sample, encode: Encode) -> None:
    (problem,) = validate(write({"train": [[sample(0, **{"mask.png": encode(np.zeros((7, 8), np.uint8))})]]})).problems
    assert "mask: 8x7 pixels, its image has 8x8" in problem.what


def test_mask_classes_outside_the_card_are_found(write: Write, sample: Sample, encode: Encode) -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[0, :3] = 11, 254, 255
    (problem,) = validate(write({"train": [[sample(0, **{"mask.png": encode(mask)})]]})).problems
    assert problem.what == "mask: class 11, 254; dataset.json names 0 to 10 (and 255 for unknown)"


def test_a_duplicate_key_is_found_across_shards(write: Write, sample: Sample) -> None:
    (problem,) = validate(write({"train": [[sample(0), sample(1)], [sample(1)]]})).problems
    assert (problem.file, problem.key) == ("train-000000.tar", "s00001")
    assert "the second is in train-000001.tar" in problem.what


def test_a_truncated_tar_gives_the_samples_before_and_one_problem(write: Write, sample: Sample) -> None:
    folder = write({"train": [[sample(i) for i in range(10)]], "test": [[sample(i) for i in range(3)]]})
    shard = folder / "train-000000.tar"
    os.truncate(shard, shard.stat().st_size // 2)
    report = validate(folder)
    (problem,) = report.problems
    assert problem.what.startswith("truncated at byte") and (problem.file, problem.key) == ("train-000000.tar", "")
    assert 3 <= report.splits["train"].samples <= 7 and report.splits["test"].samples == 3


def test_a_missing_shard_is_one_problem(numbered: Path) -> None:
    (numbered / "train-000001.tar").unlink()
    (problem,) = validate(numbered).problems
    assert problem.file == "train-000001.tar" and validate(numbered).splits["train"].samples == 35


def test_a_wrong_number_of_samples_is_found(numbered: Path) -> None:
    card = json.loads((numbered / "dataset.json").read_text())
    card["splits"]["test"]["samples"] = 8
    (numbered / "dataset.json").write_text(json.dumps(card))
    assert [str(p) for p in validate(numbered).problems] == [
        "dataset.json: splits.test.samples=8, but its shards have 7 samples; correct the number or the list of shards"
    ]


def test_sounds_that_a_loader_reads_are_valid(write: Write, sample: Sample) -> None:
    values = samples(0.5, 8_000, 300, noise=0.1)
    files = [
        {"wav": float_wav(values / 32768, 8_000)},
        {"flac": flac(values, 8_000)},
        {"wav": wav(np.stack([values, values], 1), 44_100)},
    ]
    folder = write({"train": [[sample(number, **file) for number, file in enumerate(files)]]})
    assert validate(folder).problems == []
    with load(open_index(folder, "train"), batch_size=3, components=("sound",)) as loader:
        assert next(loader).present["sound"].all()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_annotations_are_refused_in_training_exactly_if_validate_finds_a_problem(data: st.DataObject) -> None:
    number = st.one_of(st.integers(-1, 9), st.floats(-1, 9), st.just(float("nan")), st.booleans(), st.text(max_size=1))
    box = st.one_of(st.lists(number, min_size=4, max_size=6), number)
    values = data.draw(
        st.dictionaries(
            st.sampled_from(["boxes", "labels", "width", "height"]),
            st.one_of(st.lists(box, max_size=3), st.lists(number, max_size=3), number),
        )
    )
    content = json.dumps(values).encode()
    found = inspect(Scanned("key", {"tags": StoredComponent("json", 0, content)}), Header("png", 8, 8), CARD)
    try:
        annotation(content, 8, 8, np.arange(1))
    except ValueError as error:
        assert found[0] == f"json: {error}"
    else:
        assert found == []


def test_every_problem_is_listed(write: Write, sample: Sample) -> None:
    report = validate(write({"train": [[sample(i, cls=b"99", txt=b"\xff") for i in range(50)]]}))
    assert len(report.problems) == 100 and report.text().endswith("\n100 problems")


def test_a_report_can_be_written_as_json(numbered: Path) -> None:
    (numbered / "train-000001.tar").write_bytes(b"junk")
    report = json.loads(json.dumps(validate(numbered).to_dict()))
    assert report["problems"][0]["file"] == "train-000001.tar" and report["splits"]["test"]["samples"] == 7


def test_without_a_card_there_is_nothing_to_validate(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no dataset\.json"):
        validate(tmp_path)


def test_progress_counts_up_to_the_total(numbered: Path) -> None:
    seen: list[tuple[int, int]] = []
    validate(numbered, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(35, 67), (60, 67), (67, 67)]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_bytes_cause_a_traceback(data: st.DataObject, encode: Encode) -> None:
    whole = {
        "image": [encode(NOISE, form) for form in ("PNG", "JPEG", "WEBP")],
        "mask": [encode(NOISE[..., 0])],
        "boxes": [boxes([0, 0, 4, 4, 0], labels=[0])],
        "caption": [b"a word"],
        "sound": [GOOD, flac(samples(0.05, 8_000, 300), 8_000)],
    }
    component = data.draw(st.sampled_from(sorted(whole)))
    content = bytearray(data.draw(st.sampled_from(whole[component])))
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=6)
    ):
        content[position] = value
    del content[data.draw(st.integers(1, len(content))) :]
    part = StoredComponent("wav" if component == "sound" else "png", 0, bytes(content))
    found = inspect(Scanned("key", {component: part}), Header("png", 8, 8), CARD)
    assert all(isinstance(line, str) and "\n" not in line for line in found)


@pytest.mark.parametrize("name", ["digits", "cifar10", "coco128"])
def test_real_shards_are_valid(name: str, shared_data: Callable[[str], Path]) -> None:
    report = validate(shared_data(name))
    assert report.problems == [] and report.splits["train"].samples in (4000, 10000, 128)


def test_without_dali_sounds_are_not_checked_and_the_report_says_so(tmp_path: Path) -> None:
    make("shapes", tmp_path / "shapes", resolution=16, train=8, test=4)
    code = "import sys; sys.modules['nvidia.dali'] = None; from mtgen.shards.validate import validate; "
    code += "print(validate(sys.argv[1]).text())"
    text = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "shapes")], capture_output=True, text=True, check=True
    ).stdout
    assert "sounds were not checked: DALI is not installed" in text and "no problems" in text
    assert "sounds were not checked" not in validate(tmp_path / "shapes").text()
