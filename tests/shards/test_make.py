"""Making data sets by recipes: seeded, reproducible, with clear errors."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import webdataset

from mtgen.config import find_entry, parse_options
from mtgen.errors import ConfigError, DataError
from mtgen.schema import DatasetCard
from mtgen.shards import split_writer
from mtgen.shards.make import make
from mtgen.shards.recipe import RECIPES

PAGE = Path(__file__).resolve().parents[2] / "data_shards/README.md"
SMALL = [
    ("digits", {"train": 30, "test": 10}),
    ("digits", {"train": 30, "test": 10, "digits": 4, "resolution": 48, "background": "textured"}),
    ("digits", {"train": 30, "test": 10, "digits": 2, "style": "gray"}),
    ("shapes", {"train": 30, "test": 10}),
    ("shapes", {"train": 30, "test": 10, "shapes": 9, "resolution": 64, "background": "textured"}),
]


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def read(folder: Path, split: str) -> list[dict]:
    card = DatasetCard.model_validate_json((folder / "dataset.json").read_text())
    return list(webdataset.WebDataset(str(folder / str(card.splits[split].shards)), shardshuffle=False).decode("pil"))


@pytest.mark.parametrize(("recipe", "options"), SMALL)
def test_two_processes_make_the_same_bytes(tmp_path: Path, recipe: str, options: dict) -> None:
    make(recipe, tmp_path / "here", seed=3, **options)
    program = (
        f"from mtgen.shards.make import make; make({recipe!r}, {str(tmp_path / 'there')!r}, seed=3, **{options!r})"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONHASHSEED": "7"}, timeout=120)
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


@pytest.mark.parametrize("recipe", ["digits", "shapes"])
def test_another_seed_makes_different_scenes(tmp_path: Path, recipe: str) -> None:
    images = []
    for seed in (0, 1):
        make(recipe, tmp_path / str(seed), seed=seed, train=10, test=0)
        images.append({np.asarray(sample["png"]).tobytes() for sample in read(tmp_path / str(seed), "train")})
    assert not images[0] & images[1]


@pytest.mark.parametrize("recipe", ["digits", "shapes"])
def test_a_larger_data_set_starts_with_the_smaller_one(tmp_path: Path, recipe: str) -> None:
    make(recipe, tmp_path / "short", train=5, test=5)
    make(recipe, tmp_path / "long", train=9, test=5)
    for split in ("train", "test"):
        short, long = (read(tmp_path / name, split)[:5] for name in ("short", "long"))
        assert [(s["__key__"], s["txt"], s["png"].tobytes()) for s in short] == [
            (s["__key__"], s["txt"], s["png"].tobytes()) for s in long
        ]


def test_the_card_records_what_was_made_and_how(tmp_path: Path) -> None:
    card = make("digits", tmp_path / "set", seed=5, train=12, test=3, style="gray")
    assert card == DatasetCard.model_validate_json((tmp_path / "set/dataset.json").read_text())
    assert {name: split.samples for name, split in card.splits.items()} == {"train": 12, "test": 3}
    assert (card.classes[7], card.mask_classes[8]) == ("seven", "seven")
    assert card.model_extra is not None
    assert card.model_extra["made_by"] == {
        "recipe": "digits",
        "seed": 5,
        "options": {
            "resolution": 32,
            "train": 12,
            "val": 0,
            "test": 3,
            "background": "plain",
            "digits": 1,
            "style": "gray",
            "part": "0/1",
        },
    }


def test_without_test_samples_there_is_no_test_split(tmp_path: Path) -> None:
    assert list(make("shapes", tmp_path / "set", train=2, test=0).splits) == ["train"]


def test_progress_counts_the_samples_of_every_shard(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    make(
        "shapes",
        tmp_path / "set",
        progress=lambda done, total: seen.append((done, total)),
        samples_per_shard=2,
        train=3,
        test=2,
    )
    assert seen == [(2, 5), (3, 5), (5, 5)]


def test_a_shard_is_full_at_a_size_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("shapes", tmp_path / "one", train=20, test=4)
    assert [path.name for path in sorted((tmp_path / "one").glob("*.tar"))] == ["test-000000.tar", "train-000000.tar"]
    monkeypatch.setattr(split_writer, "MIN_SAMPLES_PER_SHARD", 3)
    monkeypatch.setattr(split_writer, "SHARD_BYTES", 40_000)
    card = make("shapes", tmp_path / "several", train=20, test=4)
    shards = sorted((tmp_path / "several").glob("train-*.tar"))
    assert len(shards) > 2 and card.splits["train"].shards == f"train-{{000000..{len(shards) - 1:06d}}}.tar"
    counts = [len(list(webdataset.WebDataset(str(path), shardshuffle=False))) for path in shards]
    assert sum(counts) == 20 and all(count % 3 == 0 for count in counts[:-1])
    assert all(path.stat().st_size >= 40_000 for path in shards[:-1])
    both = [read(tmp_path / name, "train") for name in ("one", "several")]
    assert [sample["png"].tobytes() for sample in both[0]] == [sample["png"].tobytes() for sample in both[1]]


SHARDED = {"seed": 3, "samples_per_shard": 7, "train": 40, "test": 10}


def test_any_number_of_processes_makes_the_same_bytes(tmp_path: Path) -> None:
    for processes in (1, 2):
        make("digits", tmp_path / str(processes), processes=processes, **SHARDED)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


KILLED = """
import os, signal, sys
from mtgen.shards.make import make
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with SIGINT ignored
def stop(done, total):
    if done >= 14:
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
make("digits", sys.argv[1], progress=stop, seed=3, samples_per_shard=7, train=40, test=10)
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_an_interrupted_make_resumes_and_gives_the_same_bytes(tmp_path: Path, how: str) -> None:
    make("digits", tmp_path / "whole", **SHARDED)
    subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "set"), how], check=False, capture_output=True, timeout=120
    )
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".set.partial").glob("*.tar")}
    assert {"train-000000.tar", "train-000001.tar"} <= set(kept) and len(kept) < 8 and not (tmp_path / "set").exists()
    make("digits", tmp_path / "set", **SHARDED)
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")
    assert {name: (tmp_path / "set" / name).stat().st_mtime_ns for name in kept} == kept
    assert not (tmp_path / ".set.partial").exists()


def test_shards_of_another_recipe_are_not_reused(tmp_path: Path) -> None:
    make("digits", tmp_path / "whole", **SHARDED)
    program = KILLED.replace("seed=3", "seed=4")
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "set"), "SIGKILL"], check=False, capture_output=True, timeout=120
    )
    make("digits", tmp_path / "set", **SHARDED)
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


def options_of(recipe: str, assignments: list[str]) -> dict[str, object]:
    return parse_options(find_entry(RECIPES, recipe).Options, assignments)


def test_options_are_parsed_with_their_types() -> None:
    assert options_of("digits", ["resolution=64", "digits=2", "style=gray"]) == {
        "resolution": 64,
        "digits": 2,
        "style": "gray",
    }
    assert options_of("shapes", ["background=textured"]) == {"background": "textured"}
    assert options_of("shapes", []) == {}


@pytest.mark.parametrize(
    ("recipe", "assignments", "message"),
    [
        (
            "digit",
            [],
            "unknown recipe 'digit'; did you mean 'digits'? possible: coco, csv, cvat, digits, folder, hf, labelme",
        ),
        (
            "digits",
            ["resolutoin=64"],
            "resolutoin: unknown key; did you mean resolution? possible: resolution, train, ",
        ),
        ("digits", ["resolution=big"], "resolution=big: input should be a valid integer"),
        ("digits", ["digits"], "digits: not an override; write key=value"),
        (
            "digits",
            ["digits=3", "resolution=28"],
            "digits=3: 3 objects need a resolution of at least 32, it is 28",
        ),
        ("shapes", ["shapes=10"], "shapes=10: input should be less than or equal to 9"),
        (
            "digits",
            ["part=2/2"],
            "part=2/2: not k/n with 0 <= k < n <= 20; the two halves are 0/2 and 1/2",
        ),
        ("digits", ["part=half"], "part=half: not k/n"),
        ("digits", ["part=0/0"], "part=0/0: not k/n"),
        ("digits", ["style=negative"], "style=negative: "),
        (
            "digits",
            ["style=gray", "background=textured"],
            "style=gray: gray is white on black and has no background=textured",
        ),
        ("digits", ["background=striped"], "background=striped: possible: plain, textured"),
    ],
)
def test_an_invalid_option_is_named_in_one_line(recipe: str, assignments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match="^" + re.escape(message)) as error:
        options_of(recipe, assignments)
    assert "\n" not in str(error.value)


def test_all_invalid_options_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        options_of("digits", ["train=0", "colour=red"])
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["train=0", "colour"]


def test_make_validates_its_options_before_it_writes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="colour: unknown key"):
        make("shapes", tmp_path / "set", colour="red")
    assert list(tmp_path.iterdir()) == []


def test_make_does_not_write_to_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    make("shapes", tmp_path / "set", train=2, test=0)
    before = contents(tmp_path / "set")
    with pytest.raises(DataError, match="set: is not empty"):
        make("shapes", tmp_path / "set", train=3, test=0)
    assert contents(tmp_path / "set") == before
    assert make("shapes", tmp_path / "set", overwrite=True, train=3, test=0).splits["train"].samples == 3


def test_the_example_of_the_page_writes_readable_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [example] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(example, str(PAGE), "exec"), {})  # noqa: S102 - the page's own example
    samples = read(tmp_path / "data_shards/mine", "train")
    assert len(samples) == 100
    assert set(samples[0]) >= {"png", "cls", "mask.png", "json", "txt"}
    [left, top, right, bottom, label] = samples[0]["json"]["boxes"][0]
    mask = np.asarray(samples[0]["mask.png"])[..., 0]
    assert (mask[top:bottom, left:right] == label + 1).all() and np.count_nonzero(mask) == (bottom - top) * (
        right - left
    )


def test_the_page_names_every_recipe_with_its_options() -> None:
    recipes, _, _ = PAGE.read_text(encoding="utf-8").partition("## Exporting")  # which has a table of formats
    rows = {row.split("`")[1]: row for row in recipes.splitlines() if re.match(r"\| `[a-z]+` \|", row)}
    assert sorted(rows) == RECIPES.names()
    for name in RECIPES:
        assert all(f"`{option}`" in rows[name] for option in RECIPES[name].Options.model_fields)
