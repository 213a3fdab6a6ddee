"""Pretrained networks of other libraries as one file that `discriminator.backbone` reads (`mtgen weights convert`)."""

import hashlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mtgen.errors import ConfigError, DataError, UserError, last_line
from mtgen.networks import efficientnet_lite
from mtgen.networks.backbone import SIDE_MULTIPLE
from mtgen.networks.efficientnet_lite import EfficientNetLite
from mtgen.networks.exported_program import read_exported_program
from mtgen.networks.graph_network import read_graph, write_graph
from mtgen.storage.source import read_file

MAX_SIDE = 2048
"""Longest side of the input of a converted network, pixels."""
MAX_LEVELS = 4
"""Levels that are taken of a network with many blocks of one resolution, such as a vision transformer."""
NEW_LAYERS = "hidden_states_norms."
"""Layers that transformers' backbones have and their checkpoints lack: normalization, which starts as the identity."""
TOLERANCE = 1e-3
"""Largest difference between the written network and the original, relative to the features."""


@dataclass(frozen=True)
class PretrainedNetwork:
    """A network to convert.

    Attributes:
        module: normalized images `[B,3,H,W]` -> feature maps `[B,C,h,w]`, a list, tuple or dictionary.
        mean, std: that images in [0, 1] are normalized with, per channel; empty: not known.
    """

    module: nn.Module
    mean: Sequence[float] = field(default=())
    std: Sequence[float] = field(default=())


class _FeatureList(nn.Module):
    """A network whose features are a list, whatever it returns itself."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> list[Tensor]:
        found = self.network(image)
        found = getattr(found, "feature_maps", found)
        return [found] if isinstance(found, Tensor) else list(found.values() if isinstance(found, dict) else found)


def convert_weights(
    path: Path, out: Path, network: str | None = None, side: int | None = None, **about: str | None
) -> dict[str, Any]:
    """Write a pretrained network as one file.

    Args:
        path: a folder of Hugging Face (config.json, model.safetensors), a program of `torch.export` (`.pt2`), or a
            checkpoint: of EfficientNet-Lite, or of `network`.
        network: `FILE.py:FUNCTION` that returns the module which the checkpoint's tensors are loaded into; it is run.
        side: side of the input for networks of a fixed input size, pixels; default: any multiple of 32.
        about: "source" and "license".

    Returns:
        "sha256" of the file, "parameters", and "channels" and "sides" of the features of an image of 224 pixels or
        `side`.

    Raises:
        UserError: the file cannot be written, or a package is missing.
        ConfigError, DataError: the network cannot be read or converted.
    """
    if path.suffix == ".pt2":
        found = PretrainedNetwork(nn.Module())
        program: Any = read_exported_program(read_file(str(path), "SOURCE"), str(path))
    else:
        found = _open_network(path, network)
        program = _trace(found.module, side, path)
    texts = {name: text for name, text in about.items() if text}
    texts |= {name: json.dumps(list(given)) for name, given in (("mean", found.mean), ("std", found.std)) if given}
    try:
        content = write_graph(program, texts)
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be converted, it has {error}; give a network of tensors alone") from None
    written, _ = read_graph(content, str(out))
    maps = _compare(written, program, path)
    try:
        out.write_bytes(content)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another file") from None
    return {
        "sha256": hashlib.sha256(content).hexdigest(),
        "parameters": sum(parameter.numel() for parameter in written.parameters()),
        "channels": [x.shape[1] for x in maps],
        "sides": [list(x.shape[2:]) for x in maps],
    }


def _open_network(path: Path, network: str | None) -> PretrainedNetwork:
    if path.is_dir():
        return _open_hugging_face(path)
    tensors = _read_tensors(path)
    if network is not None:
        module = _call(network)
        try:
            module.load_state_dict(tensors)
        except RuntimeError as error:
            raise ConfigError(f"{path}: holds another network than {network} ({last_line(error)[:200]})") from None
        return PretrainedNetwork(module.eval())
    if efficientnet_lite.FIRST_NAME not in tensors:
        raise ConfigError(
            f"{path}: is not a checkpoint of EfficientNet-Lite; name its network with --network FILE.py:FUNCTION, or "
            "give a folder of Hugging Face, or a .pt2 file"
        )
    try:
        return PretrainedNetwork(EfficientNetLite(tensors), EfficientNetLite.MEAN, EfficientNetLite.STD)
    except (KeyError, RuntimeError, IndexError) as error:
        raise ConfigError(
            f"{path}: is not a checkpoint of EfficientNet-Lite ({last_line(error)[:200]}); other EfficientNets need "
            "--network FILE.py:FUNCTION"
        ) from None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by name; nothing else of a pickle is loaded."""
    if not path.is_file():
        raise DataError(f"{path}: the file does not exist")
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (UnpicklingError, safetensors.SafetensorError, RuntimeError, EOFError) as error:
        raise ConfigError(
            f"{path}: does not hold tensors alone ({str(error).splitlines()[0][:200]}), and nothing else is loaded; "
            "save the network's state_dict()"
        ) from None
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not found or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise ConfigError(f"{path}: does not hold tensors by name; save the network's state_dict()")
    return found


def _call(network: str) -> nn.Module:
    """The module that a function of the user's file returns."""
    file, _, name = network.rpartition(":")
    if not Path(file).is_file() or not name.isidentifier():
        raise ConfigError(f"--network {network}: give FILE.py:FUNCTION, a function without arguments")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None  # it is a file of Python
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    function: Callable[[], Any] | None = getattr(loaded, name, None)
    if function is None or not isinstance(module := function(), nn.Module):
        raise ConfigError(f"--network {network}: has to be a function that returns a torch module")
    return module


def _open_hugging_face(folder: Path) -> PretrainedNetwork:
    """A backbone of transformers, from a local folder and without code of others."""
    try:
        from transformers import AutoBackbone, AutoConfig
    except ModuleNotFoundError:
        raise UserError(
            "folders of Hugging Face are opened with transformers, which is not installed: "
            "pip install 'mtgen[backbones]'"
        ) from None
    values = json.loads(read_file(str(folder / "config.json"), "SOURCE"))
    try:
        config = AutoConfig.for_model(values.pop("model_type"), **values)
        config.out_features = _features(config.stage_names[1:])
        network = AutoBackbone.from_config(config)
    except (KeyError, ValueError, AttributeError) as error:
        raise ConfigError(f"{folder}: is not a backbone of transformers ({last_line(error)[:200]})") from None
    _load_by_suffix(network, _read_tensors(folder / "model.safetensors"), folder)
    about = folder / "preprocessor_config.json"
    preprocessing = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
    return PretrainedNetwork(network.eval(), preprocessing.get("image_mean", ()), preprocessing.get("image_std", ()))


def _features(stages: Sequence[str]) -> list[str]:
    """All stages of a pyramid; of a vision transformer's many blocks some, evenly spaced up to the last."""
    if len(stages) <= MAX_LEVELS + 1:
        return list(stages)
    return [stages[len(stages) * (number + 1) // MAX_LEVELS - 1] for number in range(MAX_LEVELS)]


def _load_by_suffix(network: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Load a checkpoint whose names may begin with the name of the base model that a classifier wraps."""
    expected = network.state_dict()
    prefixes = ["", *dict.fromkeys(f"{name.partition('.')[0]}." for name in tensors)]
    prefix = max(prefixes, key=lambda prefix: sum(f"{prefix}{name}" in tensors for name in expected))
    found = {name: tensors[f"{prefix}{name}"] for name in expected if f"{prefix}{name}" in tensors}
    optional = (NEW_LAYERS, "num_batches_tracked")
    missing = [name for name in expected if name not in found and not any(part in name for part in optional)]
    wrong = [name for name, tensor in found.items() if tensor.shape != expected[name].shape]
    if missing or wrong:
        raise ConfigError(
            f"{folder}: model.safetensors and config.json are of different networks ({len(missing + wrong)} tensors "
            f"are missing or have another shape, such as {(missing + wrong)[0]}); download both again"
        )
    network.load_state_dict(found, strict=False)


def _trace(module: nn.Module, side: int | None, path: Path) -> Any:
    """Trace a network for any number of images, and any sides that are multiples of 32 unless `side` is given."""
    batch = torch.export.Dim("batch", min=1)
    height, width = (torch.export.Dim(name, min=1, max=MAX_SIDE // SIDE_MULTIPLE) for name in ("height", "width"))
    free = {0: batch, 2: SIDE_MULTIPLE * height, 3: SIDE_MULTIPLE * width}
    image = torch.zeros(2, 3, *((side, side) if side else (64, 96)))
    try:
        return torch.export.export(
            _FeatureList(module).eval(), (image,), dynamic_shapes=({0: batch} if side else free,)
        )
    except Exception as error:  # a third-party network may raise anything
        remedy = "" if side else "; a network of a fixed input size needs --side PIXELS"
        raise ConfigError(f"{path}: cannot be traced ({last_line(error)[:200]}){remedy}") from error


@torch.no_grad()
def _compare(written: nn.Module, program: Any, path: Path) -> list[Tensor]:
    """The features of some image, which have to be those of the original."""
    example = program.example_inputs
    shape = example[0][0].shape if example and example[0] else (2, 3, 64, 96)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found, expected = written(image), program.module(check_guards=False)(image)
    for mine, theirs in zip(found, expected, strict=True):
        if (mine - theirs).abs().max() > TOLERANCE * theirs.abs().max():
            raise ConfigError(f"{path}: the converted network computes something else; report this as a bug")
    return found
