"""Using a model: classes by name, samples as shards, readings of files."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mtgen import checkpoint
from mtgen.config import validate
from mtgen.data.decode import Decoder
from mtgen.data.geometry import window
from mtgen.data.index import open_index
from mtgen.data.loader import once
from mtgen.data.view import View
from mtgen.ema import Average
from mtgen.errors import ConfigError, DataError, UserError
from mtgen.inference import Reading, _as_input, parse_class, predict_files, predict_run, read_square, sample_run, sample_shards
from mtgen.model import Model, build
from mtgen.pictures import sample_grid
from mtgen.sampling import generate
from mtgen.schema import DatasetCard
from mtgen.shards.validate import validate as check

CLASSES = ["zero", "one", "Two", "7"]
Make = Callable[..., Model]


@pytest.fixture(scope="module")
def make_model() -> Make:
    """A real model of two levels, 8x8 pixels, as it is before training."""

    def make(channels: str = "rgb", classes: int = 4, tasks: tuple[str, ...] = ("generation", "classification", "segmentation")) -> Model:
        values = {
            "name": "test",
            "resolution": 8,
            "device": "cpu",
            "data": {"path": "nowhere", "channels": channels},
            "generator": {"widths": [8, 8], "latent": 4},
            "discriminator": {"widths": [8, 8], "decoder": 4, "embedding": 4},
            "tasks": {name: {} for name in tasks},
        }
        card = DatasetCard(
            name="set", classes=CLASSES[:classes], mask_classes=["background", "a", "b"], source="drawn", licence="CC0", splits={}
        )
        config = validate(values)
        model = Model(build(config, card), config, card)
        random = torch.Generator().manual_seed(1)
        for network in (model.networks.generator, model.networks.side):
            for parameter in network.parameters():  # zero-initialised layers would make all outputs alike
                parameter += 0.3 * torch.randn(parameter.shape, generator=random)
        return model

    return make


@pytest.fixture(scope="module")
def model(make_model: Make) -> Model:
    return make_model()


@pytest.mark.parametrize(("text", "number"), [("one", 1), ("ONE", 1), (" two ", 2), ("0", 0), ("2", 2)])
def test_a_class_is_known_by_name_in_any_case_and_by_number(model: Model, text: str, number: int) -> None:
    assert parse_class(text, model.card) == number


def test_a_name_goes_before_a_number(model: Model) -> None:
    assert parse_class("7", model.card) == 3


@pytest.mark.parametrize(("text", "hint"), [("zeró", "did you mean 'zero'"), ("4", "or 0 to 3"), ("-1", "or 0 to 3"), ("²", "or 0 to 3")])
def test_an_unknown_class_is_an_error_that_says_what_is_possible(model: Model, text: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        parse_class(text, model.card)


def test_without_classes_none_can_be_asked_for() -> None:
    with pytest.raises(ConfigError, match="names no classes"):
        parse_class("one", DatasetCard(name="set", splits={}))


@pytest.fixture(scope="module")
def shards(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_shards(model, tmp_path_factory.mktemp("made") / "set", torch.arange(40) % 4, seed=3)


def test_sampled_shards_pass_validation(shards: Path) -> None:
    assert check(shards).problems == []


def test_sampled_shards_have_a_training_and_a_test_split(shards: Path) -> None:
    assert (len(open_index(shards, "train")), len(open_index(shards, "test"))) == (36, 4)


def test_the_loader_reads_what_the_model_drew(shards: Path, model: Model) -> None:
    index = open_index(shards, "train")
    batch = next(iter(once(index, View(8, "rgb"), batch_size=36)))
    canvas, _ = next(generate(model, torch.arange(40) % 4, 3, "shards"))
    order = torch.tensor([int(index.key(row)) for row in range(36)])
    torch.testing.assert_close(batch.image, canvas.image[order], atol=0.6 / 127.5, rtol=0)
    assert torch.equal(batch.mask, canvas.mask.argmax(1)[order])
    assert torch.equal(batch.label, order % 4)
    assert batch.present["class"].all() and batch.present["mask"].all()


def test_sampled_shards_say_where_they_come_from(shards: Path) -> None:
    about = json.loads((shards / "dataset.json").read_text())
    assert about["source"] == "generated with seed 3 by a model that was trained on 'set' (drawn)" and about["licence"] == "CC0"
    assert about["classes"] == CLASSES and about["mask_classes"] == ["background", "a", "b"]


def test_a_sample_has_its_class_in_its_json(shards: Path) -> None:
    sample = next(iter(webdataset.WebDataset(str(shards / "train-000000.tar"), shardshuffle=False)))
    assert json.loads(sample["json"])["labels"] == [int(sample["cls"])]


def test_equal_seeds_write_equal_bytes(model: Model, shards: Path, tmp_path: Path) -> None:
    again = sample_shards(model, tmp_path / "again", torch.arange(40) % 4, seed=3)
    first, second = ([hashlib.sha256(path.read_bytes()).digest() for path in sorted(folder.glob("*.tar"))] for folder in (shards, again))
    assert first == second and len(first) == 2


def test_grey_samples_are_stored_grey(make_model: Make, tmp_path: Path) -> None:
    made = sample_shards(make_model("grey"), tmp_path / "grey", torch.zeros(4, dtype=torch.int64), seed=0)
    sample = next(iter(webdataset.WebDataset(str(made / "train-000000.tar"), shardshuffle=False)))
    (tmp_path / "one.png").write_bytes(sample["png"])
    assert Image.open(tmp_path / "one.png").mode == "L"


def test_samples_without_a_class_are_stored_without_one(model: Model, tmp_path: Path) -> None:
    made = sample_shards(model, tmp_path / "none", torch.full((4,), -1), seed=0)
    sample = next(iter(webdataset.WebDataset(str(made / "train-000000.tar"), shardshuffle=False)))
    assert "cls" not in sample and "png" in sample and "mask.png" in sample


def test_a_folder_that_is_taken_is_left_alone(model: Model, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty"):
        sample_shards(model, tmp_path, torch.zeros(4, dtype=torch.int64), seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_one_sample_is_no_data_set(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 samples at least"):
        sample_shards(model, tmp_path / "set", torch.tensor([0]), seed=0)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(8, "rgb", 1, "cpu", 1, masks=False)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_an_image_is_cut_to_its_largest_centred_square(tmp_path: Path) -> None:
    picture(30, 20).save(tmp_path / "a.png")
    assert np.array_equal(read_square(tmp_path / "a.png", 3), np.asarray(picture(30, 20))[:, 5:25])


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    picture(20, 20).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_square(tmp_path / "a.png", 3), np.rot90(np.asarray(picture(20, 20)), -1))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_pixel_is_taken(tmp_path: Path, mode: str, channels: int) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture(16, 16).convert(mode).save(path)
    assert read_square(path, channels).mode == ("L" if channels == 1 else "RGB")


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    Image.fromarray((np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)).save(tmp_path / "a.png")
    assert np.array_equal(read_square(tmp_path / "a.png", 1), np.arange(256).reshape(16, 16))


def test_readings_see_what_training_sees(model: Model, shards: Path, tmp_path: Path) -> None:
    index = open_index(shards, "train")
    rows = range(8)
    files = []
    for row in rows:
        files.append(tmp_path / f"{row}.png")
        files[-1].write_bytes(index.read(row, "image"))
    batch = next(iter(once(index, View(8, "rgb"), batch_size=8)))
    probabilities = model.predict(batch.image).class_logits.softmax(1)
    for reading, expected in zip(predict_files(model, files), probabilities, strict=True):
        assert reading["number"] == int(expected.argmax()) and reading["class"] == CLASSES[reading["number"]]
        assert reading["probability"] == pytest.approx(float(expected.max()), abs=1e-4)


@settings(max_examples=30)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 100))
def test_any_image_becomes_what_the_training_decoder_makes_of_it(
    tmp_path_factory: pytest.TempPathFactory, decoder: Decoder, width: int, height: int, seed: int
) -> None:
    path = tmp_path_factory.mktemp("file") / "a.png"
    picture(width, height, seed).save(path)
    view = window(np.array([width]), np.array([height]), 1.0, False, 0, np.array([0]))
    decoded, _ = decoder.decode([path.read_bytes()], [None], view, str)
    torch.testing.assert_close(_as_input(read_square(path, 3), 8), decoded[0], atol=0, rtol=0)


def test_a_mask_has_the_size_of_the_square_and_the_classes_that_were_read(model: Model, tmp_path: Path) -> None:
    picture(50, 40).save(tmp_path / "a.png")
    reading = next(predict_files(model, [tmp_path / "a.png"]))
    expected = model.predict(_as_input(read_square(tmp_path / "a.png", 3), 8)[None]).mask_logits.argmax(1)[0].numpy()
    assert np.array_equal(np.asarray(reading["mask"]), expected.repeat(5, 0).repeat(5, 1))


@pytest.mark.parametrize(("side", "shown"), [(20, 80), (100, 100), (1500, 1024)])
def test_an_overlay_is_large_enough_to_see_and_never_huge(model: Model, tmp_path: Path, side: int, shown: int) -> None:
    picture(side, side).save(tmp_path / "a.png")
    reading = next(predict_files(model, [tmp_path / "a.png"]))
    assert reading["overlay"].size == (shown, shown) and reading["mask"].size == (side, side)


def test_only_what_the_run_reads_is_told(make_model: Make, tmp_path: Path) -> None:
    picture(8, 8).save(tmp_path / "a.png")
    reading = next(predict_files(make_model(tasks=("generation", "segmentation")), [tmp_path / "a.png"]))
    assert set(reading) == {"file", "mask", "overlay"}


@pytest.fixture
def mixed(tmp_path: Path, model: Model) -> list[Reading]:
    """Readings of: a good file, a truncated one, a missing one, a text, a folder, an empty file, another good one."""
    picture(64, 64).save(tmp_path / "good.png")
    picture(64, 64).save(tmp_path / "photo.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "photo.jpg").read_bytes()[:1000])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").touch()
    names = ["good.png", "cut.jpg", "missing.png", "text.png", "folder.png", "empty.png", "photo.jpg"]
    return list(predict_files(model, [tmp_path / name for name in names], batch_size=2))


def test_files_that_cannot_be_read_are_named_each_in_one_line(mixed: list[Reading]) -> None:
    for reading in mixed[1:6]:
        assert set(reading) == {"file", "error"}
        assert reading["error"].startswith(reading["file"]) and "\n" not in reading["error"]


def test_an_error_says_what_is_wrong(mixed: list[Reading]) -> None:
    said = [reading.get("error", "") for reading in mixed]
    for text, word in zip(
        said[1:6], ["truncated", "No such file", "no PNG, JPEG or WebP", "directory", "no PNG, JPEG or WebP"], strict=True
    ):
        assert word in text


def test_files_around_a_bad_one_are_read(mixed: list[Reading]) -> None:
    assert "class" in mixed[0] and "class" in mixed[6] and len(mixed) == 7


def test_readings_do_not_depend_on_the_batches_they_are_made_in(model: Model, tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(files):
        picture(8, 8, i).save(path)
    one, all_ = ([(r["class"], r["probability"]) for r in predict_files(model, files, size)] for size in (1, 5))
    assert [c for c, _ in one] == [c for c, _ in all_]
    assert [p for _, p in one] == pytest.approx([p for _, p in all_], rel=1e-5)


@pytest.fixture(scope="module")
def run(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with one checkpoint."""
    folder = tmp_path_factory.mktemp("runs") / "test"
    averaged = Average([("generator", model.networks.generator), ("side", model.networks.side)], 0.0).state()
    state = {"card": model.card.model_dump(mode="json")}
    checkpoint.save(folder / "checkpoints", 64, {"ema": averaged}, state, model.config.to_yaml(), keep=1)
    return folder


def test_a_run_draws_the_grid_of_its_averaged_model(run: Path, model: Model, tmp_path: Path) -> None:
    said = sample_run(run, None, 8, 5, tmp_path / "new" / "grid.png", None, "cpu")
    labels = torch.arange(8) % 4
    canvas, _ = next(generate(model, labels, 5, "sample"))
    assert np.array_equal(Image.open(tmp_path / "new" / "grid.png"), sample_grid(canvas, labels, model.card))
    assert said == f"wrote 8 samples to {tmp_path / 'new' / 'grid.png'}"


def test_a_grid_goes_into_the_runs_folder_by_itself(run: Path) -> None:
    sample_run(run, None, 4, 5, None, None, "cpu")
    assert (run / "samples" / "000000064-sample-5.png").is_file()


def test_only_the_classes_that_are_asked_for_are_drawn(run: Path, tmp_path: Path) -> None:
    sample_run(run, ["two", "2", "one"], 20, 0, None, tmp_path / "set", "cpu")
    label = [open_index(tmp_path / "set", split).label.tolist() for split in ("train", "test")]
    assert sorted(label[0] + label[1]) == [1] * 10 + [2] * 10


def test_a_grid_of_a_form_that_does_not_exist_is_an_error(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"grid.nothing: cannot be written"):
        sample_run(run, None, 4, 0, tmp_path / "grid.nothing", None, "cpu")


def test_a_run_reads_files_and_leaves_masks_and_overlays(run: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        picture(16, 16).save(tmp_path / folder / "x.png")
    (tmp_path / "bad.png").write_text("no image")
    files = [tmp_path / "a" / "x.png", tmp_path / "bad.png", tmp_path / "b" / "x.png"]
    rows, problems = predict_run(run, files, tmp_path / "out", "cpu")
    assert [row["file"] for row in rows] == [str(files[0]), str(files[2])] and len(problems) == 1
    written = [Path(row[kind]) for row in rows for kind in ("mask", "overlay")]
    assert sorted(tmp_path.glob("out/*")) == sorted(written) and len(set(written)) == 4
    assert json.loads(json.dumps(rows)) == rows
