"""`mtgen.load`: a trained model in a program, and how little that needs."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.core_only import ROOT, outside_of_the_core, refusing
from PIL import Image

import mtgen
from mtgen.checkpointing import checkpoint
from mtgen.checkpointing.averaged_weights import export_weights
from mtgen.checkpointing.retention import Retention
from mtgen.errors import CheckpointError, ConfigError, DataError
from mtgen.inference.inputs import InMemoryFile
from mtgen.inference.predict import predict_run
from mtgen.inference.prompt import PromptRequest
from mtgen.inference.trained_model import TrainedModel
from mtgen.inference.translate import translate_run
from mtgen.models.model import Model
from mtgen.models.sampling import generate
from mtgen.schema import Prompt
from mtgen.visualization.grids import to_uint8

MakePicture = Callable[..., Image.Image]


@pytest.fixture(scope="module")
def trained(run: Path) -> TrainedModel:
    return mtgen.load(run, device="cpu")


def test_three_lines_need_nothing_but_the_core(
    run: Path, translating: Path, make_picture: MakePicture, tmp_path: Path
) -> None:
    make_picture(9, 12).save(tmp_path / "photo.png")
    program = f"""{refusing(outside_of_the_core())}
import mtgen
model = mtgen.load({str(run)!r})
model.sample(n=4, class_="one", caption="it").save({str(tmp_path / "samples")!r})
photo = {str(tmp_path / "photo.png")!r}
print(model.predict(photo).classes, len(mtgen.load({str(translating)!r}).translate(photo, "zebras")))
"""
    assert {"ray", "deepspeed", "nvidia", "mlflow", "webdataset", "pyarrow"} <= outside_of_the_core()
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("1\n") and len(list((tmp_path / "samples").glob("*-mask.png"))) == 4


def test_samples_are_those_of_the_networks_with_their_prompts(trained: TrainedModel, model: Model) -> None:
    samples = trained.sample(6, ["one", "7"], seed=3, score=0.0)
    canvas, _ = next(generate(model, Prompt.of_classes(torch.tensor([1, 3] * 3)), 3, "sample"))
    assert samples.classes == ["one", "7"] * 3 and [row["class"] for row in samples.rows] == samples.classes
    assert np.array_equal(
        np.stack([np.asarray(image) for image in samples.images]), to_uint8(canvas.image).permute(0, 2, 3, 1).numpy()
    )
    assert canvas.mask is not None and np.array_equal(np.stack(samples.masks), canvas.mask.argmax(1).numpy())
    assert any(samples.boxes) and all(0 <= box.x0 < box.x1 <= 8 for boxes in samples.boxes for box in boxes or [])


def test_predictions_are_those_of_the_command(
    trained: TrainedModel, run: Path, make_picture: MakePicture, tmp_path: Path
) -> None:
    make_picture(20, 10, 1).save(tmp_path / "wide.png")
    rows: list[dict[str, object]] = []
    predict_run(run, [tmp_path / "wide.png"], tmp_path / "out", "cpu", on_result=rows.append)
    read = trained.predict(tmp_path / "wide.png")
    assert read.rows == [{key: value for key, value in rows[0].items() if key not in ("mask", "overlay")}]
    assert read.images[0].size == (10, 10) and read.masks[0] is not None and read.masks[0].shape == (10, 10)
    assert read.boxes[0] and all(0 <= box.x0 < box.x1 <= 10 for box in read.boxes[0])


def test_files_pictures_and_arrays_of_one_image_are_predicted_alike(
    trained: TrainedModel, make_picture: MakePicture, tmp_path: Path
) -> None:
    picture = make_picture(8, 8, 2)
    picture.save(tmp_path / "a.png")
    read = trained.predict([tmp_path / "a.png", picture, np.asarray(picture), picture.convert("CMYK")])
    names = {"file": ""}
    assert len({json.dumps(row | names) for row in read.rows[:3]}) == 1 and len(read) == 4


def test_a_picture_that_lies_on_its_side_is_put_upright(trained: TrainedModel) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    turned = Image.fromarray(np.rot90(pixels))
    turned.getexif()[0x0112] = 6  # to be shown turned to the right
    assert trained.predict(turned).rows[0]["probability"] == trained.predict(pixels).rows[0]["probability"]


def test_a_translation_is_that_of_the_command(translating: Path, make_picture: MakePicture, tmp_path: Path) -> None:
    make_picture(8, 8, 1).save(tmp_path / "a.png")
    translate_run(translating, "zebras", [tmp_path / "a.png"], tmp_path / "out", 3, "cpu")
    (image,) = mtgen.load(translating).translate(tmp_path / "a.png", to="zebras", seed=3).images
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(tmp_path / "out" / "a.png")))


def test_samples_are_saved_with_their_labels(trained: TrainedModel, tmp_path: Path) -> None:
    samples = trained.sample(2, "zero", seed=1, score=0.0)
    rows = [json.loads(line) for line in (samples.save(tmp_path / "out") / "labels.jsonl").read_text().splitlines()]
    assert rows[1] == samples.rows[1] | {"image": "000001.png", "mask": "000001-mask.png"}
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / rows[1]["mask"])), samples.masks[1])


@pytest.mark.parametrize("given", [np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8), 7])
def test_what_is_no_image_is_one_clear_error(trained: TrainedModel, given: object) -> None:
    with pytest.raises(DataError, match=r"image 0: is a.*\[H,W\] or \[H,W,3\] of uint8"):
        trained.predict([given])  # type: ignore[list-item]


def test_impossible_prompts_are_the_commands_errors(trained: TrainedModel, make_model: Callable[..., Model]) -> None:
    with pytest.raises(ConfigError, match="did you mean 'zero'"):
        trained.sample(class_="zeros")
    with pytest.raises(ConfigError, match="truncation"):
        trained.sample(truncation=2)
    with pytest.raises(ConfigError, match="n=0: is out of range; possible: 1 or more"):
        trained.sample(0)
    with pytest.raises(ConfigError, match=r"was not trained on this condition \(caption\)"):
        TrainedModel(make_model(conditions=("class",)), 0).sample(caption="it")


def test_one_checkpoint_or_the_file_of_its_weights_is_a_model_too(
    trained: TrainedModel, run: Path, tmp_path: Path
) -> None:
    (folder,) = (run / "checkpoints").glob("0*")
    export_weights(checkpoint.verify(folder), tmp_path / "weights.safetensors")
    expected = trained.sample(2).images
    for path in (folder, tmp_path / "weights.safetensors"):
        assert [np.asarray(i).tolist() for i in mtgen.load(path).sample(2).images] == [
            np.asarray(i).tolist() for i in expected
        ]


def test_damaged_weights_are_named(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    export_weights(checkpoint.verify(next((run / "checkpoints").glob("0*"))), path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights.safetensors: its tensors differ from those that were written"):
        mtgen.load(path)
    path.write_bytes(content[:-9])
    with pytest.raises(CheckpointError, match=r"weights.safetensors: cannot be read as a model"):
        mtgen.load(path)


def test_weights_of_another_version_are_one_clear_error(
    model: Model, save_run: Callable[[Model, Path], Path], tmp_path: Path
) -> None:
    run = save_run(model, tmp_path / "run")
    found = checkpoint.verify(next((run / "checkpoints").glob("0*")))
    tensors = {name.replace("draw.weight", "paint.weight"): tensor for name, tensor in found.tensors("ema").items()}
    checkpoint.save(run / "checkpoints", 128, {"ema": tensors}, found.state, found.config(), keep=Retention(2))
    with pytest.raises(
        CheckpointError, match=r"parameter generator.draw.weight is missing .* use the version that trained it"
    ):
        mtgen.load(run)


def test_a_model_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a run with checkpoints"):
        mtgen.load(tmp_path / "nothing")


def test_files_are_given_by_path_by_name_or_by_their_bytes(
    trained: TrainedModel, make_picture: MakePicture, tmp_path: Path
) -> None:
    make_picture(8, 8, 2).save(tmp_path / "a.png")
    given = [tmp_path / "a.png", str(tmp_path / "a.png"), InMemoryFile("a.png", (tmp_path / "a.png").read_bytes())]
    samples = [np.asarray(trained.sample(image=one).images[0]) for one in given]
    assert np.array_equal(samples[0], samples[1]) and np.array_equal(samples[0], samples[2])
    read = trained.predict(given)
    assert len({row["probability"] for row in read.rows}) == 1 and read.rows[2]["file"] == "a.png"


def test_an_interpolation_begins_and_ends_at_the_samples_of_its_seeds(trained: TrainedModel) -> None:
    way = trained.interpolate(PromptRequest(classes=["one"]), PromptRequest(texts=["it"]), 5, seeds=(3, 4))
    for end, sample in (
        (way.images[0], trained.sample(1, "one", seed=3)),
        (way.images[-1], trained.sample(1, caption="it", seed=4)),
    ):
        assert np.abs(np.asarray(end).astype(int) - np.asarray(sample.images[0])).max() <= 1
    assert len(way) == 5 and all(mask is not None for mask in way.masks)
    with pytest.raises(ConfigError, match="n=1: interpolation needs at least 2 images"):
        trained.interpolate(PromptRequest(), PromptRequest(), 1)


def test_a_reconstruction_is_generated_from_the_predicted_latent(
    trained: TrainedModel, model: Model, make_picture: MakePicture, translating: Path
) -> None:
    pixels = np.asarray(make_picture(8, 8, 2))
    inputs = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    read = model.predict(inputs)
    assert read.posterior is not None and read.class_logits is not None
    canvas = model.sample(Prompt.of_classes(read.class_logits.argmax(1)), read.posterior[0])
    assert np.array_equal(
        np.asarray(trained.reconstruct(pixels).images[0]), to_uint8(canvas.image)[0].permute(1, 2, 0).numpy()
    )
    with pytest.raises(ConfigError, match="was not trained to reconstruct"):
        mtgen.load(translating).reconstruct(pixels)
