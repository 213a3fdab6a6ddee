import json
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtgen.data.geometry import window
from mtgen.errors import ConfigError, DataError
from mtgen.inference.label_names import domain_names, parse_class, parse_classes, parse_domain
from mtgen.inference.prompt import PromptRequest, parse_request
from mtgen.models.model import Model
from mtgen.schema import DatasetCard

Make = Callable[..., Model]


def wav(path: Path, rate: int, seconds: float = 0.3, hertz: float = 500) -> Path:
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, rate, 0, "NONE", ""))
        out.writeframes(
            (16_000 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype("<i2").tobytes()
        )
    return path


@pytest.mark.parametrize(("text", "number"), [("one", 1), ("ONE", 1), (" two ", 2), ("0", 0), ("2", 2)])
def test_a_class_is_known_by_name_in_any_case_and_by_number(model: Model, text: str, number: int) -> None:
    assert parse_class(text, model.card) == number


def test_a_name_takes_precedence_over_a_number(model: Model) -> None:
    assert parse_class("7", model.card) == 3


@pytest.mark.parametrize(
    ("text", "hint"), [("zeró", "did you mean 'zero'"), ("4", "or 0 to 3"), ("-1", "or 0 to 3"), ("²", "or 0 to 3")]
)
def test_an_unknown_class_is_an_error_that_says_what_is_possible(model: Model, text: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        parse_class(text, model.card)


def test_without_classes_no_class_exists() -> None:
    with pytest.raises(ConfigError, match="has no classes"):
        parse_class("one", DatasetCard(name="set", splits={}))


def test_several_classes_are_joined_by_plus_unless_that_is_a_name(model: Model) -> None:
    assert parse_classes("one+7", model.card) == [1, 3]
    assert parse_classes("a+b", DatasetCard(name="set", classes=["a", "a+b"], splits={})) == [1]


def test_domains_are_called_like_their_data_sets(model: Model) -> None:
    assert domain_names(model.config) == ["horses", "zebras"]
    assert [parse_domain(text, model.config) for text in ("zebras", "Horses", "1")] == [1, 0, 1]


def test_an_unknown_domain_is_an_error_with_the_nearest_right_one(model: Model) -> None:
    with pytest.raises(ConfigError, match="domain 'zebra': .*did you mean 'zebras'"):
        parse_request(model, PromptRequest(domains=["zebra"]))


def test_an_empty_request_is_one_row_per_class(model: Model) -> None:
    parsed = parse_request(model, PromptRequest())
    assert parsed.names == ["zero", "one", "Two", "7"] and parsed.labels.tolist() == [0, 1, 2, 3]


def test_an_empty_request_to_a_run_without_classes_is_unconditional(make_model: Make) -> None:
    parsed = parse_request(make_model(classes=0, tasks=("generation",), conditions=("domain",)), PromptRequest())
    assert len(parsed) == 1 and parsed.prompt.values == {}


def test_several_values_are_combined(model: Model) -> None:
    parsed = parse_request(model, PromptRequest(classes=["one", "7", "one"], texts=["a", "b"]))
    assert parsed.labels.tolist() == [1, 1, 3, 3] and parsed.captions == ["a", "b", "a", "b"]
    assert parsed.prompt.values["caption"][:, 0].tolist() == [98, 99, 98, 99] and parsed.prompt.given["class"].all()


def test_two_classes_in_one_image_are_labels(model: Model) -> None:
    parsed = parse_request(model, PromptRequest(classes=["zero+7", "one"]))
    assert parsed.prompt.values["labels"].tolist() == [[1, 0, 0, 1], [0, 0, 0, 0]]
    assert parsed.prompt.given["labels"].tolist() == [True, False] and parsed.prompt.given["class"].tolist() == [
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("request_", "option"),
    [
        (PromptRequest(texts=["x"]), "--text"),
        (PromptRequest(sounds=[Path("x.wav")]), "--sound"),
        (PromptRequest(images=[Path("x.png")]), "--image"),
        (PromptRequest(layouts=[Path("x.png")]), "--layout MASK.png"),
        (PromptRequest(layouts=[Path("x.json")]), "--layout BOXES.json"),
        (PromptRequest(classes=["one+7"]), "--class A"),
    ],
)
def test_a_condition_that_the_run_was_not_trained_on_is_an_error_that_names_those_that_it_was(
    make_model: Make, request_: PromptRequest, option: str
) -> None:
    model = make_model(tasks=("generation",), conditions=("class", "domain"))
    with pytest.raises(ConfigError, match=f"^{option}.*not trained on.*it was trained on: --class, --domain"):
        parse_request(model, request_)


def test_a_condition_for_an_unconditional_run_is_an_error_that_says_to_remove_it(make_model: Make) -> None:
    with pytest.raises(ConfigError, match="^--text 'x': the run is unconditional; remove this option"):
        parse_request(make_model(tasks=("generation",), conditions=()), PromptRequest(texts=["x"]))


def test_a_caption_longer_than_the_context_is_refused_not_cut(model: Model) -> None:
    with pytest.raises(ConfigError, match="--text 'nine bytes': is 10 tokens long, the limit is 8"):
        parse_request(model, PromptRequest(texts=["nine bytes"]))


def test_an_empty_caption_is_refused(model: Model) -> None:
    with pytest.raises(ConfigError, match="empty"):
        parse_request(model, PromptRequest(texts=[" "]))


def test_a_sound_of_another_rate_is_resampled(model: Model, tmp_path: Path) -> None:
    sounds = [wav(tmp_path / f"{rate}.wav", rate) for rate in (8_000, 16_000, 44_100)]
    value = parse_request(model, PromptRequest(sounds=sounds)).prompt.values["sound"]
    assert value.shape == (3, 16, 20)
    loud = value[0] > -0.5  # the tone's own bands
    assert loud.any()
    torch.testing.assert_close(value[1][loud], value[0][loud], atol=0.05, rtol=0)
    torch.testing.assert_close(value[2][loud], value[0][loud], atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("data", "word"), [(b"", "is empty"), (b"RIFF", "not a readable WAV"), (None, "has no samples")]
)
def test_an_empty_or_damaged_sound_is_an_error_that_names_it(
    model: Model, tmp_path: Path, data: bytes | None, word: str
) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(data) if data is not None else wav(path, 8_000, 0.0)
    with pytest.raises(DataError, match=rf"--sound .*a\.wav: .*{word}.*; give a playable WAV"):
        parse_request(model, PromptRequest(sounds=[path]))


def test_a_reference_image_is_its_embedding(
    model: Model, make_picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    make_picture(8, 8).save(tmp_path / "a.png")
    pixels = torch.from_numpy(np.array(make_picture(8, 8))).permute(2, 0, 1).float() / 127.5 - 1
    value = parse_request(model, PromptRequest(images=[tmp_path / "a.png"])).prompt.values["image"]
    torch.testing.assert_close(value, model.networks.side.embed(pixels[None]), atol=1e-4, rtol=0)


def mask_file(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values.astype(np.uint8)).save(path)
    return path


def test_a_mask_becomes_one_map_per_class(model: Model, tmp_path: Path) -> None:
    values = np.zeros((8, 8))
    values[2:4, 5] = 2
    values[0, 0] = 255
    value = parse_request(model, PromptRequest(layouts=[mask_file(tmp_path / "a.png", values)])).prompt.values[
        "layout"
    ][0]
    assert value.shape == (3, 8, 8) and value[2].nonzero().tolist() == [[2, 5], [3, 5]] and value[:, 0, 0].sum() == 0


def test_a_mask_of_another_size_is_cropped_and_resized_as_in_training(model: Model, tmp_path: Path) -> None:
    from mtgen.data.decode import ImageDecoder

    values = np.random.default_rng(0).integers(0, 3, (20, 31))
    path = mask_file(tmp_path / "a.png", values)
    value = parse_request(model, PromptRequest(layouts=[path])).prompt.values["layout"][0]
    view = window(np.array([31]), np.array([20]), 1.0, False, 0, np.array([0]))
    _, mask = ImageDecoder(8, "gray", 1, "cpu", 1).decode([path.read_bytes()], [path.read_bytes()], view, str)
    assert torch.equal(value.argmax(0), mask[0])


def test_a_mask_with_an_unknown_class_is_an_error_that_says_what_is_possible(model: Model, tmp_path: Path) -> None:
    path = mask_file(tmp_path / "a.png", np.full((8, 8), 9))
    with pytest.raises(DataError, match="a.png: contains mask class 9.*possible: 0 background, 1 a, 2 b, 255"):
        parse_request(model, PromptRequest(layouts=[path]))


def test_boxes_become_maps_by_the_same_crop_as_images(model: Model, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"width": 32, "height": 16, "boxes": [[8, 0, 16, 8, "one"]]}))
    value = parse_request(model, PromptRequest(layouts=[tmp_path / "a.json"])).prompt.values["boxes"][0]
    expected = torch.zeros(4, 8, 8)
    expected[1, :4, :4] = 1  # the left upper quarter of the square in the middle
    assert torch.equal(value, expected)


@pytest.mark.parametrize(
    ("content", "error", "word"),
    [
        ('{"boxes": [[0, 0, 4, 4, "sero"]]}', ConfigError, "class 'sero'.*did you mean"),
        ('{"boxes": [[0, 0, 4, 4, 9]]}', DataError, "class 9; possible: 0 to 3"),
        ('{"boxes": [[0, 0, 40, 4, 1]]}', DataError, "outside its image of 8x8"),
        ('{"boxes": []}', DataError, "contains no boxes"),
        ('{"width": 80, "height": 8, "boxes": [[0, 0, 4, 4, 1]]}', DataError, "no box is inside the part"),
        (
            '{"width": 3000000000, "height": 8, "boxes": [[0, 0, 4, 4, 1]]}',
            DataError,
            "whole numbers of pixels, 1 to 1,000,000",
        ),
        ("no JSON", DataError, "JSON"),
    ],
)
def test_impossible_boxes_are_an_error(
    model: Model, tmp_path: Path, content: str, error: type[Exception], word: str
) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(error, match=word):
        parse_request(model, PromptRequest(layouts=[tmp_path / "a.json"]))


def test_a_layout_is_a_mask_or_boxes(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a mask"):
        parse_request(model, PromptRequest(layouts=[tmp_path / "a.txt"]))
