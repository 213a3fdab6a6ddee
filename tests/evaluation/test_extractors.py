"""Feature extractors from files: what they compute, and what they refuse."""

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mtgen.config import ExtractorConfig, validate
from mtgen.errors import ConfigError
from mtgen.evaluation.extractor import FileExtractor
from mtgen.evaluation.extractors.dinov2 import PARAMETER_NAMES, DINOv2
from mtgen.evaluation.extractors.inception import InceptionV3, folded, resized
from mtgen.schema import Batch


class Means(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def settings(path: Path, kind: str, **more: Any) -> ExtractorConfig:
    return ExtractorConfig(kind=kind, path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest(), **more)


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[[nn.Module], Path]:
    def write(network: nn.Module) -> Path:
        torch.jit.script(network).save(tmp_path / "network.pt")
        return tmp_path / "network.pt"

    return write


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
class TestTorchScript:
    def test_images_are_normalized_as_declared(self, scripted: Callable[[nn.Module], Path]) -> None:
        extract = FileExtractor(
            settings(scripted(Means()), "torchscript", name="means", side=0, mean=[0.5], std=[0.25])
        )
        assert extract.name == "means"
        assert extract(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(-1, -1, 8, 8)).tolist() == [[-2] * 3, [2] * 3]

    def test_it_is_pickled_without_its_network(self, scripted: Callable[[nn.Module], Path]) -> None:
        extract, image = FileExtractor(settings(scripted(Means()), "torchscript")), torch.rand(2, 3, 8, 8)
        other = copy.deepcopy(extract)  # by the state that is pickled
        assert "network" not in vars(other)
        assert torch.equal(other(image), extract(image))

    def test_a_network_that_returns_no_vectors_is_refused(self, scripted: Callable[[nn.Module], Path]) -> None:
        with pytest.raises(ConfigError, match=r"returns \[2, 3, 224, 224\] for two images; it must return two vectors"):
            FileExtractor(settings(scripted(nn.Identity()), "torchscript"))

    def test_a_network_for_other_images_is_refused(self, scripted: Callable[[nn.Module], Path]) -> None:
        with pytest.raises(ConfigError, match="cannot be used on images"):
            FileExtractor(settings(scripted(nn.Conv2d(5, 1, 1)), "torchscript"))

    def test_another_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("no network")
        with pytest.raises(ConfigError, match="not a TorchScript file"):
            FileExtractor(settings(tmp_path / "text", "torchscript"))


def test_another_checksum_is_refused_with_the_files_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"network")
    own = hashlib.sha256(b"network").hexdigest()
    with pytest.raises(ConfigError, match=f"sha256={'0' * 64}: .* has {own}"):
        FileExtractor(ExtractorConfig(kind="inception", path=str(tmp_path / "file"), sha256="0" * 64))


def test_a_missing_file_and_an_unknown_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        FileExtractor(ExtractorConfig(kind="inception", path=str(tmp_path / "none"), sha256="0" * 64))
    with pytest.raises(ConfigError, match="kind=inceptoin: unknown; did you mean 'inception'"):
        FileExtractor(ExtractorConfig(kind="inceptoin", path="x", sha256="0" * 64))


def test_numbers_of_another_network_cannot_take_inceptions_name() -> None:
    extractor = {"kind": "torchscript", "path": "x", "sha256": "0" * 64, "name": "inception"}
    with pytest.raises(ConfigError, match="inception is reserved for the built-in extractor"):
        validate({"name": "run", "data": {"path": "d"}, "evaluate": {"extractor": extractor}})


def test_inception_gives_2048_numbers_whatever_the_images_size(tmp_path: Path) -> None:
    save_file({**InceptionV3().state_dict(), "fc.weight": torch.zeros(1008, 2048)}, tmp_path / "inception.safetensors")
    extract = FileExtractor(settings(tmp_path / "inception.safetensors", "inception"))
    assert extract(torch.rand(1, 1, 20, 30)).shape == (1, 2048)


def test_normalizations_in_the_weights_leave_inceptions_features_as_they_were() -> None:
    network, g = InceptionV3().eval(), torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            for tensor, low, high in (
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.5, 0.5),
                (module.running_mean, -0.1, 0.1),
            ):
                tensor.copy_(torch.rand(len(tensor), generator=g) * (high - low) + low)
            module.running_var.copy_(torch.rand(len(module.running_var), generator=g) * 0.1 + 0.05)
    image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=g)
    with torch.no_grad():
        expected, found = network(image), folded(copy.deepcopy(network))(image)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max() and expected.std() > 0


def test_inceptions_images_are_resized_as_tensorflow_1_did() -> None:
    image = torch.rand(1, 1, 3, 5)
    found = resized(image, 6)[0, 0]
    for y in range(6):
        for x in range(6):
            down, across = y * 3 / 6, x * 5 / 6
            top, left = int(down), int(across)
            below, right = min(top + 1, 2), min(left + 1, 4)
            rows = [
                image[0, 0, r, left] * (1 - across + left) + image[0, 0, r, right] * (across - left)
                for r in (top, below)
            ]
            assert found[y, x].item() == pytest.approx(
                float(rows[0] * (1 - down + top) + rows[1] * (down - top)), abs=1e-6
            )


def published(network: DINOv2) -> dict[str, Tensor]:
    """A network's parameters under the names of the published files."""
    within = {
        "query": "attention.attention.query",
        "key": "attention.attention.key",
        "value": "attention.attention.value",
    }
    within |= {"mix": "attention.output.dense", "scale1": "layer_scale1.lambda1", "scale2": "layer_scale2.lambda1"}
    within |= {"fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    outside = {"patches": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
    named = {"embeddings.mask_token": torch.zeros(1, 8)}
    for name, tensor in network.state_dict().items():
        parts = name.split(".")
        if parts[0] == "layers":
            named[".".join(["encoder.layer", parts[1], within.get(parts[2], parts[2]), *parts[3:]])] = tensor
        elif parts[0] in outside:
            named[".".join([outside[parts[0]], *parts[1:]])] = tensor
        else:
            named[f"embeddings.{name}"] = tensor
    return named


def test_dinov2_is_read_from_the_names_of_the_published_files(tmp_path: Path) -> None:
    network, file = DINOv2(64, 2), tmp_path / "dinov2.safetensors"
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    save_file(published(network), file)
    extract, image = FileExtractor(settings(file, "dinov2")), torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = network(((image + 1) * 127.5).round())
    assert torch.allclose(extract(image), expected, atol=1e-5)
    assert all(any(part in name for name in load_file(file)) for part in PARAMETER_NAMES)


def test_a_file_of_another_shape_is_one_error_that_names_the_tensors(tmp_path: Path) -> None:
    tensors, file = published(DINOv2(64, 1)), tmp_path / "dinov2.safetensors"
    save_file({**tensors, "embeddings.position_embeddings": torch.zeros(1, 50, 64)}, file)
    with pytest.raises(ConfigError, match=r"position_embeddings: \(1, 50, 64\), not \(1, 1370, 64\)"):
        FileExtractor(settings(file, "dinov2"))
    with pytest.raises(ConfigError, match="holds another network"):
        FileExtractor(settings(file, "inception"))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_features_of_real_images_are_computed_once(
    scripted: Callable[[nn.Module], Path], assemble: Any, make_card: Any, make_batch: Any, tmp_path: Path
) -> None:
    from mtgen.evaluation.cache import CacheScope, TensorCache
    from mtgen.evaluation.evaluate import evaluate
    from mtgen.schema import Canvas

    batches = [make_batch(torch.rand(40, 1, 8, 8) * 2 - 1)]
    model = assemble(make_card(), lambda labels, latent: Canvas(F.pad(latent.view(-1, 1, 2, 2), (3, 3, 3, 3)).tanh()))
    cache = CacheScope(TensorCache(tmp_path / "cache"), {"fingerprint": "some data"})
    settings_ = settings(scripted(Means()), "torchscript", name="means", side=0)

    def run(train: list[Batch]) -> dict[str, float]:
        names = ["distribution/fd", "distribution/kd", "distribution/prdc", "distribution/memorisation"]
        return evaluate(model, batches, train, samples=50, seed=0, metrics=names, extractor=settings_, data_cache=cache)

    first = run(batches)
    assert len(first) == 8
    assert run([]) == first  # the training split is not read again
