"""Exported models: whole folders that are used like runs, and ONNX files that need neither mtgen nor torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from helpers.made_models import made, saved
from helpers.made_once import made_once
from safetensors import safe_open
from tokenizers import Tokenizer, models
from typer.testing import CliRunner

import mtgen
from mtgen.checkpointing.averaged_weights import tensor_digest
from mtgen.cli import app
from mtgen.config import validate
from mtgen.errors import CheckpointError, ConfigError, DataError, UserError
from mtgen.export import export
from mtgen.export.graphs import CONDITION_PREFIX, GeneratorGraph, outputs
from mtgen.export.model_card import load_metrics, model_card
from mtgen.models.loading import load_run, weights_of
from mtgen.models.model import Model, build
from mtgen.tracking.journal import Journal

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = made(generator={"self_attention": [4]}, discriminator={"self_attention": [8], "downsampling": "filtered"})
    for layer in (model.networks.side.discriminator.heads["detection"].out, model.networks.generator.draw_boxes):
        layer.weight *= 0.03  # boxes whose scores are all 1 would have no order
    model.networks.generator.draw_boxes.bias.fill_(3.0)  # some boxes, whatever the random weights
    return saved(model, tmp_path_factory.mktemp("runs") / "test")


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "exports", lambda folder: export(run, folder / "model", onnx=True)) / "model"


@pytest.fixture(scope="module")
def model(exported: Path) -> Model:
    return load_run(exported, "cpu")[0]


def inputs(path: Path, rows: int) -> dict[str, np.ndarray]:
    """Random inputs of a graph, as its own declarations say."""
    random, found = np.random.default_rng(rows), {}
    for one in onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs():
        shape = [rows, *one.shape[1:]]
        if one.type == "tensor(float)":
            found[one.name] = random.standard_normal(shape).astype(np.float32)
        elif one.type == "tensor(bool)":
            found[one.name] = random.random(shape) < 0.5
        else:
            found[one.name] = random.integers(0, 2, shape)
    return found


def answers(path: Path, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip([one.name for one in session.get_outputs()], session.run(None, given), strict=True))


@pytest.mark.parametrize("rows", [1, 5])
def test_the_predictor_reads_the_same_as_the_networks(exported: Path, model: Model, rows: int) -> None:
    given = inputs(exported / "predictor.onnx", rows)
    found = answers(exported / "predictor.onnx", given)
    expected = [tensor.numpy() for tensor in outputs(model.predict(torch.from_numpy(given["image"]))).values()]
    assert list(found) == ["class_logits", "label_logits", "mask_logits", "boxes", "latent", "embedding"]
    assert (found["boxes"][..., 5] > 0).any()
    for one, other in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rows", [1, 5])
def test_the_generator_draws_the_same_as_the_networks_whatever_is_asked_for(
    exported: Path, model: Model, rows: int
) -> None:
    given = inputs(exported / "generator.onnx", rows)
    found = answers(exported / "generator.onnx", given)
    expected = GeneratorGraph(model)(*map(torch.from_numpy, given.values()))
    assert list(found) == ["image", "mask", "box_maps", "boxes"]
    assert (found["boxes"][..., 5] > 0).any()
    for one, other in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=1e-4, rtol=0)


def test_a_condition_that_is_not_given_changes_nothing(exported: Path) -> None:
    given = inputs(exported / "generator.onnx", 3)
    given[f"{CONDITION_PREFIX}caption_given"] = np.zeros(3, bool)
    other = given | {f"{CONDITION_PREFIX}caption": given[f"{CONDITION_PREFIX}caption"] + 1}
    first, second = (answers(exported / "generator.onnx", some)["image"] for some in (given, other))
    assert np.array_equal(first, second)
    given_caption = {f"{CONDITION_PREFIX}caption_given": np.ones(3, bool)}
    assert not np.array_equal(answers(exported / "generator.onnx", given | given_caption)["image"], first)


def test_the_files_run_without_mtgen_and_torch(exported: Path, tmp_path: Path) -> None:
    program = f"""
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mtgen", "torch"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import numpy, onnxruntime
predictor = onnxruntime.InferenceSession({str(exported / "predictor.onnx")!r})
(logits,) = predictor.run(["class_logits"], {{"image": numpy.zeros((3, 3, 8, 8), numpy.float32)}})
classes = json.loads(predictor.get_modelmeta().custom_metadata_map["classes"])
print(logits.shape, classes)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "(3, 4) ['zero', 'one', 'Two', '7']\n", done.stderr


def test_one_file_a_head_holds_that_head_alone(run: Path, exported: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(run), "--out", str(tmp_path / "heads"), "--heads", "class"])
    assert result.exception is None, result.output
    given = inputs(tmp_path / "heads" / "predictor-class.onnx", 2)
    found = answers(tmp_path / "heads" / "predictor-class.onnx", given)
    assert list(found) == ["class_logits"] and not (tmp_path / "heads" / "predictor.onnx").exists()
    np.testing.assert_allclose(
        found["class_logits"], answers(exported / "predictor.onnx", given)["class_logits"], atol=1e-5
    )
    assert (tmp_path / "heads" / "predictor-class.onnx").stat().st_size < (exported / "predictor.onnx").stat().st_size


def test_an_exported_folder_is_used_like_the_run(run: Path, exported: Path, tmp_path: Path) -> None:
    first, second = (mtgen.load(path, "cpu").sample(3, "one") for path in (run, exported))
    assert [image.tobytes() for image in first.images] == [image.tobytes() for image in second.images]
    first.save(tmp_path / "in")
    for words in (
        ["sample", str(exported), "-n", "2"],
        ["predict", str(exported), str(tmp_path / "in" / "000000.png")],
    ):
        result = CliRunner().invoke(app, words)
        assert result.exception is None, result.output
    result = CliRunner().invoke(app, ["inspect", str(exported)])
    assert isinstance(
        result.exception, CheckpointError
    ) and "an exported model; give the run that it was exported from" in str(result.exception)
    export(exported, tmp_path / "again")  # and exported again
    again, before = (weights_of(folder) for folder in (tmp_path / "again", exported))
    assert tensor_digest(again.tensors) == tensor_digest(before.tensors) and (again.config, again.card) == (
        before.config,
        before.card,
    )


def test_weights_configuration_and_card_stand_in_files_that_other_tools_read(run: Path, exported: Path) -> None:
    with safe_open(exported / "model.safetensors", "np") as file:
        assert set(file.keys()) == set(weights_of(run).tensors) and file.metadata()["images"] == "64"
    assert json.loads((exported / "card.json").read_text())["mask_classes"] == ["background", "a", "b"]
    assert (exported / "config.yaml").read_text() == weights_of(run).config


def test_the_model_card_says_what_the_model_is_and_how_good(run: Path, model: Model) -> None:
    journal = Journal(run)
    journal.row(64, {"test/class_accuracy": 0.5, "evaluation/class_accuracy": 0.25})
    journal.close()
    text = model_card(model, weights_of(run), run, "samples.png", {}, 20)
    for words in (
        "# test",
        "## Test metrics at 64 images seen",
        "| classes | zero, one, Two, 7 |",
        "| images seen | 64 |",
        "| class_accuracy | 0.2500 |",
        "mtgen.load(",
    ):
        assert words in text


@pytest.mark.parametrize(("name", "title"), [("val", "Validation metrics"), ("test", "Test metrics")])
def test_without_an_evaluation_the_model_card_has_the_metrics_of_snapshots(
    name: str, title: str, tmp_path: Path
) -> None:
    journal = Journal(tmp_path)
    journal.row(64, {f"{name}/class_accuracy": 0.5})
    journal.close()
    assert load_metrics(tmp_path) == (title, 64, {"class_accuracy": 0.5})


def test_a_tokenizer_goes_with_the_model(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"?": 0, "cat": 1}, unk_token="?"))  # noqa: S106 - a token of text
    words.save(str(tmp_path / "tokenizer.json"))
    plain = made(conditions=("caption",))
    config = validate(
        {**plain.config.model_dump(mode="json"), "data": {"path": "x", "tokenizer": str(tmp_path / "tokenizer.json")}}
    )
    run = saved(Model(build(config, plain.card), config, plain.card), tmp_path / "run")
    export(run, tmp_path / "model")
    before = mtgen.load(run, "cpu").sample(1, caption="cat")
    (tmp_path / "tokenizer.json").unlink()
    assert (
        mtgen.load(tmp_path / "model", "cpu").sample(1, caption="cat").images[0].tobytes() == before.images[0].tobytes()
    )
    with pytest.raises(DataError, match="the file does not exist"):
        mtgen.load(run, "cpu")


def test_an_export_replaces_nothing(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="mine: exists already"):
        export(run, tmp_path / "mine")
    assert not list((tmp_path / "mine").iterdir())


def test_an_unknown_head_is_an_error_before_anything_is_written(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'mask'"):
        export(run, tmp_path / "model", heads=["masks"])
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_one_clear_error(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export(run, tmp_path / "file" / "model")
