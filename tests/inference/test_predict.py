import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mtgen.data.decode import ImageDecoder
from mtgen.data.geometry import window
from mtgen.data.index import open_index
from mtgen.errors import ConfigError, DataError
from mtgen.inference.inputs import CroppedImage, InputImage, Inputs, open_cropped, read_file, to_input
from mtgen.inference.predict import ImagePrediction, json_rows, predict_images, predict_run
from mtgen.inference.prompt import PromptRequest, parse_request
from mtgen.inference.sample import sample_shards
from mtgen.models.model import Model
from mtgen.shards.validate import validate as check

Make = Callable[..., Model]
MakePicture = Callable[..., Image.Image]


def predictions(model: Model, *paths: Path, size: int = 32) -> list[ImagePrediction]:
    return list(
        predict_images(model, (InputImage(str(p), Path(p.stem), partial(read_file, p)) for p in paths), 0.0, size)
    )


def crop(path: Path, channels: int, size: tuple[int, int] = (8, 8)) -> CroppedImage:
    return open_cropped(path.read_bytes(), str(path), channels, size)


@pytest.mark.parametrize(
    ("size", "box"), [((8, 8), (5, 0, 25, 20)), ((8, 16), (0, 2, 30, 17)), ((16, 8), (10, 0, 20, 20))]
)
def test_an_image_is_cut_to_the_runs_aspect(
    tmp_path: Path, make_picture: MakePicture, size: tuple[int, int], box: tuple[int, ...]
) -> None:
    make_picture(30, 20).save(tmp_path / "a.png")
    seen = crop(tmp_path / "a.png", 3, size)
    assert np.array_equal(seen.picture, np.asarray(make_picture(30, 20))[box[1] : box[3], box[0] : box[2]])
    assert (seen.left, seen.top, seen.whole) == (box[0], box[1], (30, 20))


def test_exif_rotation_is_applied(tmp_path: Path, make_picture: MakePicture) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    make_picture(20, 20).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(crop(tmp_path / "a.png", 3).picture, np.rot90(np.asarray(make_picture(20, 20)), -1))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_pixel_is_taken(tmp_path: Path, make_picture: MakePicture, mode: str, channels: int) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    make_picture(16, 16).convert(mode).save(path)
    assert crop(path, channels).picture.mode == ("L" if channels == 1 else "RGB")


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    Image.fromarray((np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)).save(tmp_path / "a.png")
    assert np.array_equal(crop(tmp_path / "a.png", 1).picture, np.arange(256).reshape(16, 16))


@pytest.fixture(scope="module", params=[(8, 8), (8, 24)])
def decoder(request: pytest.FixtureRequest) -> ImageDecoder:
    return ImageDecoder(request.param, "rgb", 1, "cpu", 1, masks=False)


@settings(max_examples=20)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 100))
def test_any_image_becomes_what_the_training_decoder_makes_of_it(
    tmp_path_factory: pytest.TempPathFactory,
    make_picture: MakePicture,
    decoder: ImageDecoder,
    width: int,
    height: int,
    seed: int,
) -> None:
    path = tmp_path_factory.mktemp("file") / "a.png"
    make_picture(width, height, seed).save(path)
    aspect = decoder.size[1] / decoder.size[0]
    view = window(np.array([width]), np.array([height]), 1.0, False, 0, np.array([0]), aspect)
    decoded, _ = decoder.decode([path.read_bytes()], [None], view, str)
    torch.testing.assert_close(to_input(crop(path, 3, decoder.size).picture, decoder.size), decoded[0], atol=0, rtol=0)


def test_predictions_are_the_models(model: Model, make_picture: MakePicture, tmp_path: Path) -> None:
    make_picture(50, 40).save(tmp_path / "a.png")
    (prediction,) = predictions(model, tmp_path / "a.png")
    expected = model.predict(to_input(crop(tmp_path / "a.png", 3).picture, (8, 8))[None])
    assert expected.class_logits is not None and expected.mask_logits is not None and expected.boxes is not None
    assert prediction.number == int(expected.class_logits.argmax())
    assert prediction.probability == pytest.approx(float(expected.class_logits.softmax(1).max()), abs=1e-5)
    mask = expected.mask_logits.argmax(1)[0].numpy()
    assert np.array_equal(np.asarray(prediction.mask_picture()), mask.repeat(5, 0).repeat(5, 1))
    assert prediction.boxes
    corners = (expected.boxes[0, :, :4] * 40 + torch.tensor([5, 0, 5, 0])).tolist()  # cut to 40x40 from x = 5
    wide_enough = [
        c for c in corners if c[2] - c[0] > 0.6 and c[3] - c[1] > 0.6
    ]  # an untrained model also predicts boxes that are too small to keep
    assert wide_enough and prediction.boxes[0][:4] == pytest.approx(wide_enough[0], abs=0.01)
    assert prediction.tags == sorted(prediction.tags or [], key=lambda tag: -tag[1])


@pytest.mark.parametrize(
    ("side", "shown"), [((20, 20), (80, 80)), ((100, 100), (100, 100)), ((1500, 750), (1024, 512))]
)
def test_an_overlay_is_large_enough_to_see_and_never_huge(
    make_model: Make, make_picture: MakePicture, tmp_path: Path, side: tuple[int, int], shown: tuple[int, int]
) -> None:
    model = make_model(resolution=(8, 16) if side[0] != side[1] else 8)
    make_picture(*side).save(tmp_path / "a.png")
    (prediction,) = predictions(model, tmp_path / "a.png")
    overlay, mask = prediction.overlay(model.card), prediction.mask_picture()
    assert overlay is not None and overlay.size == shown and mask is not None and mask.size == side


def test_only_what_the_run_predicts_is_returned(make_model: Make, make_picture: MakePicture, tmp_path: Path) -> None:
    make_picture(8, 8).save(tmp_path / "a.png")
    model = make_model(tasks=("generation", "segmentation"), conditions=("class",))
    (prediction,) = predictions(model, tmp_path / "a.png")
    assert set(prediction.row(model.card)) == {"file", "width", "height", "seen"} and prediction.mask is not None
    model = make_model(tasks=("generation", "detection"), conditions=("class",))
    (prediction,) = predictions(model, tmp_path / "a.png")
    assert prediction.overlay(model.card) is not None and prediction.mask is None


@pytest.fixture
def mixed(tmp_path: Path, model: Model, make_picture: MakePicture) -> list[ImagePrediction]:
    """Predictions for: a good file, two cut short, a missing one, a text, a folder, an empty file, another good one."""
    make_picture(64, 64).save(tmp_path / "good.png")
    make_picture(64, 64).save(tmp_path / "photo.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "photo.jpg").read_bytes()[:1000])
    (tmp_path / "end.png").write_bytes((tmp_path / "good.png").read_bytes()[:-12])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").touch()
    names = ["good.png", "cut.jpg", "end.png", "missing.png", "text.png", "folder.png", "empty.png", "photo.jpg"]
    return predictions(model, *(tmp_path / name for name in names), size=2)


def test_files_that_cannot_be_read_are_named_each_in_one_line(mixed: list[ImagePrediction]) -> None:
    words = [
        "truncated",
        "truncated",
        "No such file",
        "not a PNG, JPEG or WebP",
        "directory",
        "not a PNG, JPEG or WebP",
    ]
    for prediction, word in zip(mixed[1:7], words, strict=True):
        assert prediction.error is not None and prediction.crop is None
        assert (
            prediction.error.startswith(prediction.source.name)
            and "\n" not in prediction.error
            and word in prediction.error
        )


def test_files_around_a_bad_one_are_read(mixed: list[ImagePrediction]) -> None:
    assert mixed[0].number is not None and mixed[7].number is not None and len(mixed) == 8


def test_predictions_do_not_depend_on_the_batches_they_are_made_in(
    model: Model, make_picture: MakePicture, tmp_path: Path
) -> None:
    files = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(files):
        make_picture(8, 8, i).save(path)
    one, all_ = (predictions(model, *files, size=size) for size in (1, 5))
    assert [r.number for r in one] == [r.number for r in all_]
    assert [r.probability for r in one] == pytest.approx([r.probability for r in all_], rel=1e-5)


def test_no_more_inputs_are_loaded_than_a_batch_needs(model: Model, make_picture: MakePicture, tmp_path: Path) -> None:
    make_picture(8, 8).save(tmp_path / "a.png")

    def endless() -> Iterator[InputImage]:
        while True:
            yield InputImage("a", Path("a"), partial(read_file, tmp_path / "a.png"))

    found = predict_images(model, endless())
    assert all(next(found).error is None for _ in range(100))


@pytest.fixture
def folder(tmp_path: Path, make_picture: MakePicture) -> Path:
    root = tmp_path / "photos"
    for number, name in enumerate(["b.png", "a.png", "a.jpg", "sub/c.webp", "sub/deep/d.PNG"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        make_picture(12, 8, number).save(root / name)
    make_picture(8, 8).save(root / "b.mask.png")
    (root / "notes.txt").write_text("mine")
    (root / "bad.png").write_text("no image")
    make_picture(8, 8).save(root / "sub/..png", "PNG")  # hidden
    return root


def test_a_folder_is_searched_recursively(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtgen.inference.inputs.SORT_CHUNK_ENTRIES", 2)  # pieces smaller than the folder
    inputs = Inputs([folder], tmp_path / "out")
    found = {str(Path(s.name).relative_to(folder)): str(s.result_path) for s in inputs}
    assert found == {
        "a.jpg": "a-jpg",
        "a.png": "a-png",
        "b.png": "b",
        "bad.png": "bad",
        "sub/c.webp": "sub/c",
        "sub/deep/d.PNG": "sub/deep/d",
    }
    assert len(inputs) == 6


def test_results_inside_a_folder_are_not_read(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "old-mask.png").touch()
    assert len(Inputs([folder], folder / "out")) == 6


@pytest.mark.parametrize("above", [False, True])
def test_results_may_not_go_among_the_images(folder: Path, above: bool) -> None:
    with pytest.raises(ConfigError, match="choose another folder"):
        Inputs([folder], folder.parent if above else folder)


def test_results_may_not_go_beside_a_file_that_is_read(make_picture: MakePicture, tmp_path: Path) -> None:
    make_picture(16, 16).save(tmp_path / "x.png")
    with pytest.raises(
        ConfigError, match=r"the results would be written beside .*x\.png and could replace it; choose another folder"
    ):
        Inputs([tmp_path / "x.png"], tmp_path)


def test_a_file_whose_name_is_not_text_is_predicted_and_written_down(
    run: Path, make_picture: MakePicture, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    make_picture(16, 16).save(tmp_path / "in/y.png")
    os.rename(tmp_path / "in/y.png", os.fsencode(tmp_path / "in") + b"/caf\xe9.png")
    with json_rows(tmp_path / "read.jsonl", lines=True) as write:
        predict_run(run, [tmp_path / "in"], tmp_path / "out", "cpu", on_result=write)
    assert json.loads((tmp_path / "read.jsonl").read_text())["file"].endswith("caf\\udce9.png")


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image found"):
        Inputs([tmp_path], tmp_path / "out")


def test_a_run_predicts_a_folder_and_counts_what_is_damaged(run: Path, folder: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    steps: list[tuple[str, int, int | None]] = []
    out = tmp_path / "out"
    summary = predict_run(
        run,
        [folder],
        out,
        "cpu",
        on_result=rows.append,
        on_error=problems.append,
        progress=lambda *step: steps.append(step),
    )
    assert (summary.processed, summary.damaged) == (5, 1) and len(problems) == 1 and "bad.png" in problems[0]
    assert steps[-1] == ("predict images", 6, 6)
    written = [Path(row[kind]) for row in rows for kind in ("mask", "overlay")]
    assert sorted(path for path in out.rglob("*.png")) == sorted(written) and len(set(written)) == 10
    assert json.loads(json.dumps(rows)) == rows


def test_files_of_one_name_do_not_overwrite_each_other(run: Path, make_picture: MakePicture, tmp_path: Path) -> None:
    files = [tmp_path / name / "x.png" for name in ("a", "b")]
    for path in files:
        path.parent.mkdir()
        make_picture(16, 16).save(path)
    predict_run(run, files, tmp_path / "out", "cpu")
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_a_folder_becomes_a_data_set_that_validates(run: Path, folder: Path, tmp_path: Path) -> None:
    predict_run(run, [folder], None, "cpu", shards=tmp_path / "set", min_score=0.0)
    assert check(tmp_path / "set").problems == []
    assert (len(open_index(tmp_path / "set", "train")), len(open_index(tmp_path / "set", "test"))) == (4, 1)
    for sample in webdataset.WebDataset(str(tmp_path / "set" / "train-000000.tar"), shardshuffle=False):
        about = json.loads(sample["json"])
        assert about["width"] == about["height"] == 8 and int(sample["cls"]) in about["labels"] and "mask.png" in sample


def test_a_data_set_is_predicted_split_by_split(run: Path, model: Model, tmp_path: Path) -> None:
    samples = sample_shards(model, tmp_path / "samples", parse_request(model, PromptRequest()), 12, 0)
    rows: list[dict[str, Any]] = []
    predict_run(run, [samples], None, "cpu", shards=tmp_path / "read", on_result=rows.append)
    assert len(rows) == 12 and (
        len(open_index(tmp_path / "read", "train")),
        len(open_index(tmp_path / "read", "test")),
    ) == (11, 1)
    before, after = open_index(samples, "test"), open_index(tmp_path / "read", "test")
    assert before.read(0, "image") == after.read(0, "image")


def test_earlier_rows_stay_until_there_are_new_ones(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("before")
    with pytest.raises(ConfigError), json_rows(tmp_path / "a.json", lines=True):
        raise ConfigError("a mistyped run")
    assert (tmp_path / "a.json").read_text() == "before"
    with json_rows(tmp_path / "a.json", lines=True) as write:
        write({"file": 1})
    assert (tmp_path / "a.json").read_text() == '{"file": 1}\n'


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("count", [0, 2])
def test_rows_are_written_as_they_come(tmp_path: Path, lines: bool, count: int) -> None:
    with json_rows(tmp_path / "a.json", lines) as write:
        for number in range(count):
            write({"file": number})
    text = (tmp_path / "a.json").read_text()
    found = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    assert found == [{"file": number} for number in range(count)]
