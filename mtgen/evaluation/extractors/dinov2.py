"""DINOv2 vision transformers (small, base, large), from the published safetensors files."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from mtgen.config import EXTRACTORS, ExtractorConfig
from mtgen.errors import ConfigError
from mtgen.evaluation.extractor import load_strictly

DINO_IMAGE_SIDE = 224
"""Side of the input images, pixels."""
PATCH = 14
"""Side of a patch, pixels."""
GRID = 37
"""Patches along each side that the position embeddings were trained for."""
DINO_HEAD_DIM = 64
"""Dimensions of an attention head."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's mean and standard deviation."""


class _Layer(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size, eps=1e-6)
        self.norm2 = nn.LayerNorm(size, eps=1e-6)
        self.query, self.key, self.value, self.mix = (nn.Linear(size, size) for _ in range(4))
        self.scale1 = nn.Parameter(torch.ones(size))
        self.scale2 = nn.Parameter(torch.ones(size))
        self.fc1 = nn.Linear(size, 4 * size)
        self.fc2 = nn.Linear(4 * size, size)

    def _attend(self, x: Tensor) -> Tensor:
        query, key, value = (
            part(x).unflatten(2, (-1, DINO_HEAD_DIM)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        return self.mix(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale1 * self._attend(self.norm1(x))
        return x + self.scale2 * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class DINOv2(nn.Module):
    """uint8 images `[B,3,H,W]` -> the class token after the last layer, `[B,size]`.

    Source: Oquab et al. 2023; for evaluation Stein et al. 2023, who also resize images to 224x224 with a bicubic
    filter.
    """

    def __init__(self, size: int, depth: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size))
        self.position_embeddings = nn.Parameter(torch.zeros(1, GRID * GRID + 1, size))
        self.patches = nn.Conv2d(3, size, PATCH, PATCH)
        self.layers = nn.Sequential(*(_Layer(size) for _ in range(depth)))
        self.norm = nn.LayerNorm(size, eps=1e-6)

    def forward(self, image: Tensor) -> Tensor:
        """Images `[B,3,H,W]` in 0 to 255 -> the class token of the last layer, `[B,D]`."""
        x = F.interpolate(
            image.float() / 255, (DINO_IMAGE_SIDE, DINO_IMAGE_SIDE), mode="bicubic", antialias=True
        ).clamp(0, 1)
        mean, std = (torch.tensor(values, device=x.device).view(-1, 1, 1) for values in (MEAN, STD))
        patches = self.patches((x - mean) / std)
        positions = self.position_embeddings[:, 1:].unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2)
        patches = patches + F.interpolate(positions, patches.shape[2:], mode="bicubic", align_corners=False)
        first = self.cls_token + self.position_embeddings[:, :1]
        x = torch.cat([first.expand(len(x), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
        return self.norm(self.layers(x))[:, 0]


PARAMETER_NAMES = {
    "embeddings.patch_embeddings.projection": "patches",
    "embeddings.": "",
    "encoder.layer.": "layers.",
    "attention.attention.": "",
    "attention.output.dense": "mix",
    "layer_scale1.lambda1": "scale1",
    "layer_scale2.lambda1": "scale2",
    "mlp.": "",
    "layernorm.": "norm.",
}
"""Parts of parameter names in the published files (`facebook/dinov2-base` and others) -> parts of the names here."""


def _renamed(name: str) -> str:
    for published, here in PARAMETER_NAMES.items():
        name = name.replace(published, here)
    return name


@EXTRACTORS.register("dinov2")
def dinov2(path: Path, settings: ExtractorConfig) -> nn.Module:
    """`DINOv2` from a safetensors file, whose tensors determine its size and depth."""
    tensors = {_renamed(name): tensor for name, tensor in load_file(path).items()}
    if "cls_token" not in tensors:
        raise ConfigError(
            f"evaluate.extractor.path={path}: holds another network (no embeddings.cls_token); give a DINOv2 file"
        )
    depth = len({name.split(".")[1] for name in tensors if name.startswith("layers.")})
    network = DINOv2(tensors["cls_token"].shape[-1], depth)
    load_strictly(network, tensors, path, lambda name: name == "mask_token")
    return network
