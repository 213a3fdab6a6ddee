"""A tiny pretrained network in a file, as `discriminator.backbone` reads it."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtgen.networks.graph_network import write_graph


class Pyramid(nn.Module):
    """Features of 3 and 5 channels at half and a quarter of the input's resolution, with batch normalization."""

    def __init__(self, seed: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(3, 3, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 5, 3, stride=2, padding=1)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = torch.relu(self.norm(self.first(image)))
        return [x, self.second(x)]


def traced(network: nn.Module) -> Any:
    """A program for images of any sides that are multiples of 32."""
    batch, height, width = (torch.export.Dim(name, min=1, max=64) for name in ("batch", "height", "width"))
    shapes = ({0: batch, 2: 32 * height, 3: 32 * width},)
    return torch.export.export(network.eval(), (torch.zeros(2, 3, 64, 96),), dynamic_shapes=shapes)


_CONTENT: dict[int, bytes] = {}


def settings(folder: Path, seed: int = 3, **more: Any) -> dict[str, Any]:
    """Write the network into a folder; returns `discriminator.backbone`."""
    if seed not in _CONTENT:  # tracing takes seconds
        _CONTENT[seed] = write_graph(traced(Pyramid(seed)), {"mean": "[0.5]", "std": "[0.25]", "license": "CC0"})
    file = folder / f"pyramid{seed}.safetensors"
    file.write_bytes(_CONTENT[seed])
    return {"path": str(file), "sha256": hashlib.sha256(_CONTENT[seed]).hexdigest(), "input_side": 32, **more}


def configured(path: Path, content: bytes) -> dict[str, Any]:
    """Write any content into a file; returns `discriminator.backbone` with its checksum."""
    path.write_bytes(content)
    return {"path": str(path), "sha256": hashlib.sha256(content).hexdigest(), "input_side": 32}


def lite_checkpoint(widths: tuple[int, ...] = (4, 6, 8, 10, 12, 14, 16)) -> dict[str, Tensor]:
    """Tensors of an EfficientNet-Lite of two blocks in the second stage and one in the others."""
    random = torch.Generator().manual_seed(1)
    tensors = {"_conv_stem.weight": torch.randn(8, 3, 3, 3, generator=random) / 5, **_norm("_bn0", 8)}
    blocks = [(8, 4, False, 3), (4, 6, True, 3), (6, 6, True, 3)]
    blocks += [(a, b, True, k) for a, b, k in zip(widths[1:], widths[2:], (5, 3, 5, 5, 3), strict=False)]
    for number, (inputs, outputs, expanded, side) in enumerate(blocks):
        own, hidden = f"_blocks.{number}.", inputs * 2 if expanded else inputs
        if expanded:
            tensors[f"{own}_expand_conv.weight"] = torch.randn(hidden, inputs, 1, 1, generator=random)
            tensors |= _norm(f"{own}_bn0", hidden)
        tensors[f"{own}_depthwise_conv.weight"] = torch.randn(hidden, 1, side, side, generator=random) / 4
        tensors[f"{own}_project_conv.weight"] = torch.randn(outputs, hidden, 1, 1, generator=random) / 2
        tensors |= _norm(f"{own}_bn1", hidden) | _norm(f"{own}_bn2", outputs)
    return tensors | {"_fc.weight": torch.zeros(10, 20)}


def _norm(name: str, width: int) -> dict[str, Tensor]:
    ones = {f"{name}.{part}": torch.ones(width) for part in ("weight", "running_var")}
    zeros = {f"{name}.{part}": torch.zeros(width) for part in ("bias", "running_mean")}
    return ones | zeros | {f"{name}.num_batches_tracked": torch.tensor(0)}
