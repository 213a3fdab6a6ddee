"""The pretrained network that the discriminator reads: its file, what is rejected, and its way with the model."""

import copy
import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import toy
from helpers.backbones import Pyramid, configured, lite_checkpoint, settings, traced
from helpers.made_models import made, saved
from torch import Tensor, nn

import mtgen
from mtgen.config import ExtractorConfig, validate
from mtgen.errors import ConfigError, DataError
from mtgen.evaluation.evaluate import _open_extractor
from mtgen.export import export
from mtgen.models.convert_weights import convert_weights
from mtgen.models.model import Model, build
from mtgen.networks.graph_network import write_graph
from mtgen.training.dataset import order_facts


class Local:
    """A small local data set."""

    remote, whole = False, 1

    def __len__(self) -> int:
        return 1


LOCAL: Any = Local()


def built(backbone: dict[str, Any]) -> Any:
    return build(toy.config(discriminator__backbone=backbone), toy.CARD)


def scripted(path: Path, network: nn.Module) -> dict[str, Any]:
    torch.jit.script(network).save(str(path))
    return configured(path, path.read_bytes())


class Classifier(nn.Module):
    def forward(self, image: Tensor) -> list[Tensor]:
        return [image.mean((2, 3))]


class Square(nn.Module):
    def forward(self, image: Tensor) -> list[Tensor]:
        return [image.reshape(-1, 3, 224, 224)]


def test_a_file_that_cannot_be_used_is_one_clear_error(tmp_path: Path) -> None:
    good, key = settings(tmp_path), r"discriminator\.backbone\.path=.*"
    cases = [
        (good | {"sha256": "0" * 64}, r"discriminator.backbone.sha256=0+: .* has " + good["sha256"]),
        (good | {"path": str(tmp_path)}, key + r"is a folder; give the file that `mtgen weights convert"),
        (configured(tmp_path / "p.pth", pickle.dumps([1])), key + "is a pickle, which could run code, and is not load"),
        (configured(tmp_path / "x.safetensors", b"nothing"), key + "not a safetensors file"),
        (scripted(tmp_path / "c.pt", Classifier()), key + r"returns \[16, 3\] for 16 images; it must return feature m"),
        (scripted(tmp_path / "s.pt", Square()), key + r"fails on images \[B, 3, 32, 32\] .*input_side"),
    ]
    for backbone, message in cases:
        with pytest.raises(ConfigError, match=message):
            built(backbone)
    with pytest.raises(DataError, match=r"absent: the file does not exist \(discriminator.backbone.path\)"):
        built(good | {"path": str(tmp_path / "absent")})


def test_a_torchscript_file_serves_as_well(tmp_path: Path) -> None:
    own, image = built(settings(tmp_path, mean=[0.5], std=[0.25])), torch.rand(2, 1, 8, 8)
    other = built(scripted(tmp_path / "p.pt", Pyramid().eval()) | {"mean": [0.5], "std": [0.25]})
    for a, b in zip(*(n.side.discriminator.backbone(image) for n in (own, other)), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_levels_have_unit_scale_and_the_sizes_of_the_trunk_also_for_gray_images_and_rectangles(tmp_path: Path) -> None:
    for size, channels, sides in ((8, "gray", [(4, 4), (8, 8)]), ((8, 16), "rgb", [(4, 8), (8, 16)])):
        backbone = settings(tmp_path, input_side=64)
        config = toy.config(resolution=size, data__channels=channels, discriminator__backbone=backbone)
        found = build(config, toy.CARD).side.discriminator.backbone
        assert found is not None and found.channels == [5, 3]
        images = torch.rand(4, 1 if channels == "gray" else 3, *config.size) * 2 - 1
        maps = found(images)
        assert [tuple(x.shape[2:]) for x in maps] == sides
        assert all(0.2 < x.std() < 5 for x in maps)
    gray = torch.rand(2, 1, 8, 16)
    assert all(torch.equal(a, b) for a, b in zip(found(gray), found(gray.expand(-1, 3, -1, -1)), strict=True))


def test_settings_override_the_files_normalization_and_choose_levels(tmp_path: Path) -> None:
    default = built(settings(tmp_path)).side.discriminator.backbone
    assert default.spec.mean == (0.5,) and default.spec.std == (0.25,)
    own = built(settings(tmp_path, mean=[0.1, 0.2, 0.3], levels=1)).side.discriminator.backbone
    assert own.spec.mean == (0.1, 0.2, 0.3) and own.channels == [5] and len(own(torch.zeros(1, 1, 8, 8))) == 1


def with_backbone(model: Model, backbone: dict[str, Any]) -> Model:
    values = model.config.model_dump(mode="json")
    values["discriminator"]["backbone"] = backbone
    values["tasks"].pop("translation", None)
    config = validate(values)
    return Model(build(config, model.card), config, model.card)


def test_it_goes_with_the_model_also_into_onnx(tmp_path: Path) -> None:
    backbone = settings(tmp_path)
    model = with_backbone(made(tasks=("generation", "classification"), conditions=("class",)), backbone)
    run = saved(model, tmp_path / "run")
    export(run, tmp_path / "model", heads=["class"])
    Path(backbone["path"]).unlink()
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    loaded = mtgen.load(tmp_path / "model", "cpu")
    tensor = torch.tensor(image).permute(2, 0, 1)[None] / 127.5 - 1
    expected = loaded.model.predict(tensor).class_logits
    assert expected is not None and torch.equal(expected, model.predict(tensor).class_logits)
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "model" / "predictor-class.onnx")
    (found,) = session.run(None, {"image": tensor.numpy()})
    assert np.abs(found - expected.numpy()).max() < 1e-4
    text = (tmp_path / "model" / "README.md").read_text()
    assert backbone["sha256"] in text and "CC0" in text


def test_torchscript_cannot_be_exported_to_onnx_and_says_so(tmp_path: Path) -> None:
    model = with_backbone(made(tasks=("classification",), conditions=()), scripted(tmp_path / "p.pt", Pyramid().eval()))
    run = saved(model, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"discriminator.backbone: a TorchScript file cannot be exported to ONNX"):
        export(run, tmp_path / "model", heads=["class"])


def test_a_resumed_run_identifies_it_by_its_content(tmp_path: Path) -> None:
    one, other = settings(tmp_path), settings(tmp_path, seed=4)
    (tmp_path / "moved").mkdir()
    moved = settings(tmp_path / "moved")
    key = "discriminator.backbone.path"
    digests = [order_facts(toy.config(discriminator__backbone=b), LOCAL)[key] for b in (one, moved, other)]
    assert digests[0] == digests[1] != digests[2]
    assert order_facts(toy.config(), LOCAL)[key] is None


def test_evaluation_refuses_the_network_that_the_generator_was_trained_against(tmp_path: Path) -> None:
    backbone = settings(tmp_path)
    values = toy.config(discriminator__backbone=backbone).model_dump(mode="json")
    values["evaluate"]["extractor"] = {"kind": "torchscript", "path": "x", "sha256": backbone["sha256"]}
    with pytest.raises(ConfigError, match=r"evaluate.extractor.path=x: is the network of discriminator.backbone"):
        validate(values)

    class Pooled(nn.Module):  # the same weights in another file, under other names
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.inner = network

        def forward(self, image: Tensor) -> Tensor:
            return self.inner(image)[1].mean((2, 3))

    model = with_backbone(made(tasks=("generation",), conditions=()), backbone)
    for seed, same in ((3, True), (4, False)):
        file = scripted(tmp_path / f"pooled{seed}.pt", Pooled(Pyramid(seed)))
        extractor = ExtractorConfig(kind="torchscript", path=file["path"], sha256=file["sha256"])
        if same:
            with pytest.raises(ConfigError, match=r"is the network of discriminator.backbone, .* give another one"):
                _open_extractor(extractor, ["distribution/fd"], model)
        else:
            assert _open_extractor(extractor, ["distribution/fd"], model) is not None


def test_checkpoints_and_programs_are_converted(tmp_path: Path) -> None:
    checkpoint, program = tmp_path / "lite.pth", tmp_path / "pyramid.pt2"
    torch.save(lite_checkpoint(), checkpoint)
    torch.export.save(traced(Pyramid()), program)
    found = convert_weights(checkpoint, tmp_path / "lite.safetensors", source="here", license="MIT")
    assert found["channels"] == [6, 8, 12, 16]
    backbone = {"path": str(tmp_path / "lite.safetensors"), "sha256": found["sha256"], "input_side": 32}
    assert built(backbone).side.discriminator.backbone.spec.mean == (127 / 255,) * 3
    convert_weights(program, tmp_path / "pyramid.safetensors")
    assert built(settings(tmp_path)).side.discriminator.backbone.channels == [5, 3]


def test_a_checkpoint_of_a_network_in_a_file_of_ones_own_is_converted(tmp_path: Path) -> None:
    code, weights = tmp_path / "mine.py", tmp_path / "mine.safetensors"
    code.write_text("from helpers.backbones import Pyramid\n\n\ndef network():\n    return Pyramid(seed=9)\n")
    safetensors.torch.save_file(dict(Pyramid().state_dict()), weights)
    found = convert_weights(weights, tmp_path / "out.safetensors", f"{code}:network")
    assert found["channels"] == [3, 5]
    content = (tmp_path / "out.safetensors").read_bytes()
    assert content == write_graph(traced(Pyramid()), {}) or found["parameters"] == sum(
        p.numel() for p in Pyramid().parameters()
    )
    for network, message in (("mine.py:network", "give FILE.py:FUNCTION"), (f"{code}:absent", "has to be a function")):
        with pytest.raises(ConfigError, match=message):
            convert_weights(weights, tmp_path / "out.safetensors", network)


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def test_what_cannot_be_converted_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": Evil()}, "evil.pth")
    torch.save({"w": torch.zeros(1)}, "other.pth")
    torch.save({name: t for name, t in lite_checkpoint().items() if "_blocks.1._bn1" not in name}, "part.pth")
    for name, message in (
        ("evil.pth", "does not hold tensors alone"),
        ("other.pth", "is not a checkpoint of EfficientNet-Lite; name its network with --network"),
        ("part.pth", "is not a checkpoint of EfficientNet-Lite .*_bn1"),
    ):
        with pytest.raises(ConfigError, match=message):
            convert_weights(Path(name), Path("out"))
    assert not Path("ran").exists() and not Path("out").exists()


needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs transformers: pip install 'mtgen[backbones]'"
)


@needs_transformers
@pytest.mark.parametrize("kind", ["resnet", "dinov2"])
def test_a_folder_of_hugging_face_is_converted(tmp_path: Path, kind: str) -> None:
    from transformers import AutoConfig, AutoModelForImageClassification

    values = {
        "resnet": {"hidden_sizes": [4, 6, 8, 10], "depths": [1, 1, 1, 1], "embedding_size": 4},
        "dinov2": {"hidden_size": 8, "num_hidden_layers": 8, "num_attention_heads": 2, "image_size": 56},
    }[kind]
    config = AutoConfig.for_model(kind, **values)
    classifier = AutoModelForImageClassification.from_config(config).eval()
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3]}))
    tensors = {name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    out = tmp_path / "out.safetensors"
    found = convert_weights(tmp_path, out)
    assert found["channels"] == {"resnet": [4, 6, 8, 10], "dinov2": [8] * 4}[kind]
    backbone = {"path": str(out), "sha256": found["sha256"], "input_side": 64}
    assert built(backbone).side.discriminator.backbone.spec.mean == (0.1, 0.2, 0.3)
    for broken in (copy.copy(tensors), {}):
        broken.pop(next(iter(broken), ""), None)
        safetensors.torch.save_file(broken or {"w": torch.zeros(1)}, tmp_path / "model.safetensors")
        if broken and kind == "dinov2":
            continue
        with pytest.raises(ConfigError, match=r"model.safetensors and config.json are of different networks"):
            convert_weights(tmp_path, out)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is not None, reason="transformers is installed")
def test_a_folder_of_hugging_face_needs_the_extra(tmp_path: Path) -> None:
    with pytest.raises(mtgen.errors.UserError, match=r"pip install 'mtgen\[backbones\]'"):
        convert_weights(tmp_path, tmp_path / "out")
