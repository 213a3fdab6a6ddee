import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from mtgen.config import validate
from mtgen.data.index import open_index
from mtgen.data.loader import iterate_split
from mtgen.data.transform_spec import TransformSpec
from mtgen.errors import ConfigError, DataError, UserError
from mtgen.inference.prompt import ParsedPrompt, PromptRequest, parse_request
from mtgen.inference.sample import interpolate_conditions, interpolate_run, sample_run, sample_shards, slerp
from mtgen.models.model import Model
from mtgen.models.sampling import generate
from mtgen.schema import Condition, Prompt
from mtgen.shards.validate import validate as check

Make = Callable[..., Model]


@pytest.fixture(scope="module")
def parsed(model: Model) -> ParsedPrompt:
    return parse_request(model, PromptRequest(texts=["it"], classes=["zero", "one", "two", "7"]))


@pytest.fixture(scope="module")
def shards(model: Model, parsed: ParsedPrompt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_shards(model, tmp_path_factory.mktemp("made") / "set", parsed, 40, 3, min_score=0.0)


def stored(folder: Path, shard: str = "train-000000.tar") -> list[dict[str, bytes]]:
    return list(webdataset.WebDataset(str(folder / shard), shardshuffle=False))


def test_sampled_shards_pass_validation(shards: Path) -> None:
    assert check(shards).problems == []


def test_sampled_shards_have_a_training_and_a_test_split(shards: Path) -> None:
    assert (len(open_index(shards, "train")), len(open_index(shards, "test"))) == (36, 4)


def test_the_loader_decodes_what_the_model_generated(shards: Path, model: Model, parsed: ParsedPrompt) -> None:
    index = open_index(shards, "train")
    view = TransformSpec(8, "rgb", ("class", "mask", "boxes", "caption"))
    batch = next(iter(iterate_split(index, view, batch_size=36)))
    canvas, _ = next(generate(model, parsed.prompt, 3, "shards", n=40))
    order = torch.tensor([int(index.key(row)) for row in range(36)])
    torch.testing.assert_close(batch.image, canvas.image[order], atol=0.6 / 127.5, rtol=0)
    assert canvas.mask is not None and torch.equal(batch.mask, canvas.mask.argmax(1)[order])
    assert torch.equal(batch.label, order % 4)
    assert all(batch.present[name].all() for name in ("class", "mask", "boxes", "caption"))
    assert batch.boxes is not None and (batch.boxes[..., 4] >= 0).any()


def test_a_training_accepts_sampled_shards_unchanged(shards: Path, model: Model) -> None:
    from mtgen.training.dataset import open_data

    values = model.config.model_dump(mode="json")
    values["data"] |= {"path": str(shards), "mixture": []}
    values["conditions"] = {name: {} for name in ("class", "labels", "caption", "layout", "boxes")}
    index = open_data(validate(values))  # every task and condition finds what it learns from
    assert (len(index), index.whole) == (34, 36)  # the others are held out for validation


def test_a_sample_has_its_prompt_as_labels(shards: Path) -> None:
    for sample in stored(shards):
        about = json.loads(sample["json"])
        assert sample["txt"] == b"it" and int(sample["cls"]) in about["labels"]
        assert {box[4] for box in about["boxes"]} <= set(about["labels"])


def test_sampled_shards_say_where_they_come_from(shards: Path, model: Model) -> None:
    about = json.loads((shards / "dataset.json").read_text())
    assert (
        about["source"] == "generated with seed 3 by a model that was trained on 'set' (drawn)"
        and about["licence"] == "CC0"
    )
    assert about["classes"] == model.card.classes and about["mask_classes"] == ["background", "a", "b"]


def test_equal_seeds_write_equal_bytes(model: Model, parsed: ParsedPrompt, shards: Path, tmp_path: Path) -> None:
    again = sample_shards(model, tmp_path / "again", parsed, 40, 3, min_score=0.0)
    first, second = (
        [hashlib.sha256(path.read_bytes()).digest() for path in sorted(folder.glob("*.tar"))]
        for folder in (shards, again)
    )
    assert first == second and len(first) == 2


def test_gray_rectangles_are_stored_as_such(make_model: Make, tmp_path: Path) -> None:
    model = make_model("gray", resolution=(8, 16))
    made = sample_shards(model, tmp_path / "gray", parse_request(model, PromptRequest()), 4, 0, min_score=0.0)
    (tmp_path / "one.png").write_bytes(stored(made)[0]["png"])
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.mode == "L" and picture.size == (16, 8)
    assert check(made).problems == []


def test_samples_without_a_class_are_stored_without_one(model: Model, tmp_path: Path) -> None:
    made = sample_shards(model, tmp_path / "none", parse_request(model, PromptRequest(domains=["horses"])), 4, 0)
    assert "cls" not in stored(made)[0] and {"png", "mask.png", "json"} <= stored(made)[0].keys()


def test_a_folder_that_is_taken_is_left_alone(model: Model, parsed: ParsedPrompt, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty"):
        sample_shards(model, tmp_path, parsed, 4, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_one_sample_is_no_data_set(model: Model, parsed: ParsedPrompt, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 2 samples"):
        sample_shards(model, tmp_path / "set", parsed, 1, 0)


def test_without_truncation_samples_differ_and_at_zero_they_are_alike(model: Model) -> None:
    prompt = Prompt.of_classes(torch.tensor([1]))
    full, none = (next(generate(model, prompt, 0, "x", n=4, truncation=t))[0].image for t in (1.0, 0.0))
    assert (full[0] != full[1]).any() and all(torch.allclose(image, none[0], atol=1e-6) for image in none)


@pytest.mark.parametrize("truncation", [-0.1, 1.5, float("nan")])
def test_a_truncation_outside_of_0_to_1_is_an_error(run: Path, truncation: float) -> None:
    with pytest.raises(ConfigError, match="--truncation"):
        sample_run(run, PromptRequest(), 4, 0, truncation=truncation, device="cpu")


@pytest.mark.parametrize(
    "request_", [PromptRequest(), PromptRequest(classes=["one"], texts=["a", "b"]), PromptRequest(domains=["zebras"])]
)
def test_a_grid_of_any_request_goes_into_the_runs_folder_by_default(run: Path, request_: PromptRequest) -> None:
    path = run / "samples" / "000000064-sample-5.png"
    path.unlink(missing_ok=True)
    assert sample_run(run, request_, 4, 5, device="cpu") == f"wrote 4 samples to {path}"
    assert path.is_file()


def test_only_the_prompted_classes_are_generated(run: Path, tmp_path: Path) -> None:
    sample_run(run, PromptRequest(classes=["two", "2", "one"]), 20, 0, shards=tmp_path / "set", device="cpu")
    label = [open_index(tmp_path / "set", split).label.tolist() for split in ("train", "test")]
    assert sorted(label[0] + label[1]) == [1] * 10 + [2] * 10


def test_a_grid_of_a_form_that_does_not_exist_is_an_error(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"grid.nothing: cannot be written"):
        sample_run(run, PromptRequest(), 4, 0, out=tmp_path / "grid.nothing", device="cpu")


def test_slerp_begins_and_ends_at_its_ends_and_keeps_the_length() -> None:
    first, second = torch.tensor([2.0, 0, 0]), torch.tensor([0.0, 2, 0])
    way = slerp(first, second, torch.linspace(0, 1, 5))
    torch.testing.assert_close(way[[0, 4]], torch.stack([first, second]))
    torch.testing.assert_close(way.norm(dim=1), torch.full((5,), 2.0))


def test_between_two_conditions_both_ends_are_exactly_theirs(model: Model) -> None:
    parsed = parse_request(model, PromptRequest(texts=["a", "abcdef"]))
    ends = model.condition(parsed.prompt)
    way = interpolate_conditions(ends, torch.linspace(0, 1, 5))
    for row, end in ((0, 0), (4, 1)):
        assert torch.equal(way.pooled[row], ends.pooled[end])
        assert (
            way.tokens is not None and way.present is not None and ends.tokens is not None and ends.present is not None
        )
        assert torch.equal(way.present[row], ends.present[end])
        assert torch.equal(way.tokens[row][way.present[row]], ends.tokens[end][ends.present[end]])
    torch.testing.assert_close(way.pooled[2], ends.pooled.mean(0))


def test_a_layout_fades_into_the_other() -> None:
    layout = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
    way = interpolate_conditions(Condition(torch.zeros(2, 3), layout=layout), torch.linspace(0, 1, 3))
    assert way.layout is not None and way.layout[:, 0, 0, 0].tolist() == [0, 0.5, 1]


def test_an_interpolation_is_rows_of_steps(run: Path, tmp_path: Path) -> None:
    said = interpolate_run(run, PromptRequest(classes=["one", "7"]), 12, 6, 0, out=tmp_path / "a.png", device="cpu")
    assert "2 rows of 6 samples, from one to 7" in said
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (6 * 68, 2 * 68)
        row = np.asarray(picture)[:68].reshape(68, 6, 68, 3)
    assert (row[:, 0] != row[:, 5]).any()


@pytest.mark.parametrize("steps", [1, 100_000])
def test_an_interpolation_of_an_impossible_number_of_steps_is_an_error(run: Path, steps: int) -> None:
    with pytest.raises(ConfigError, match=f"--interpolate {steps}: is out of range; possible: 2 to 200 images per row"):
        interpolate_run(run, PromptRequest(), 8, steps, 0, device="cpu")


def test_an_interpolation_between_three_conditions_is_an_error(run: Path) -> None:
    with pytest.raises(ConfigError, match="3 combinations"):
        interpolate_run(run, PromptRequest(classes=["zero", "one", "7"]), 8, 4, 0, device="cpu")
