"""EfficientNet-Lite, built from the tensors of a published checkpoint, as a pyramid of features.

Source: Tan and Le 2019 (EfficientNet); the Lite variants replace Swish by ReLU6 and leave out squeeze-and-excitation.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

STAGE_STRIDES = (1, 2, 2, 2, 1, 2, 1)
"""Stride of the first block of each stage."""
FEATURE_STAGES = (1, 2, 4, 6)
"""Stages whose output is a level of the pyramid: the last ones at strides 4, 8, 16 and 32."""
BATCH_NORM_EPS = 1e-3
"""Epsilon of batch normalization in TensorFlow, where the networks were trained."""
FIRST_NAME = "_conv_stem.weight"
"""A parameter of every such checkpoint."""


class _SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's `SAME` padding for inputs of even sides: the odd pixel goes right and below."""

    def __init__(self, weight: Tensor, stride: int = 1, groups: int = 1) -> None:
        outputs, inputs, side, _ = weight.shape
        super().__init__(inputs * groups, outputs, side, stride, groups=groups, bias=False)
        total = side - stride if side > 1 else 0
        self.around = (total // 2, total - total // 2) * 2

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.around) if any(self.around) else x)


class _InvertedBottleneck(nn.Module):
    """Expansion, depthwise convolution and projection; their names are those in the checkpoints."""

    def __init__(self, tensors: Mapping[str, Tensor], stride: int) -> None:
        super().__init__()
        depthwise, project = tensors["_depthwise_conv.weight"], tensors["_project_conv.weight"]
        hidden, outputs = len(depthwise), len(project)
        self.has_expansion = "_expand_conv.weight" in tensors
        if self.has_expansion:
            self._expand_conv = _SameConv2d(tensors["_expand_conv.weight"])
            self._bn0 = nn.BatchNorm2d(hidden, BATCH_NORM_EPS)
        self._depthwise_conv = _SameConv2d(depthwise, stride, groups=hidden)
        self._bn1 = nn.BatchNorm2d(hidden, BATCH_NORM_EPS)
        self._project_conv = _SameConv2d(project)
        self._bn2 = nn.BatchNorm2d(outputs, BATCH_NORM_EPS)
        inputs = tensors["_expand_conv.weight"].shape[1] if self.has_expansion else hidden
        self.has_skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu6(self._bn0(self._expand_conv(x))) if self.has_expansion else x
        hidden = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(hidden)))))
        return x + hidden if self.has_skip else hidden


class EfficientNetLite(nn.Module):
    """Features at strides 4, 8, 16 and 32, without the classifier.

    Args:
        tensors: a checkpoint's tensors by name, of any of the variants 0 to 4, whose shapes determine the network.

    Raises:
        KeyError: a tensor is missing.
        RuntimeError: a tensor has another shape.
    """

    MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
    """Mean and standard deviation that images were normalized with in training."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        stem = tensors[FIRST_NAME]
        self._conv_stem = _SameConv2d(stem, stride=2)
        self._bn0 = nn.BatchNorm2d(len(stem), BATCH_NORM_EPS)
        self._blocks = nn.ModuleList()
        self.taken: list[int] = []
        stage, width = -1, 0
        while own := _within(tensors, f"_blocks.{len(self._blocks)}."):
            first = len(own["_project_conv.weight"]) != width
            stage, width = stage + first, len(own["_project_conv.weight"])
            self._blocks.append(_InvertedBottleneck(own, STAGE_STRIDES[stage] if first else 1))
            if first and stage - 1 in FEATURE_STAGES:
                self.taken.append(len(self._blocks) - 2)
        self.taken.append(len(self._blocks) - 1)
        self.load_state_dict({name: tensors[name] for name in self.state_dict()})
        self.eval()

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalized images `[B,3,H,W]`, sides multiples of 32 -> features `[B,C,h,w]`, highest resolution first."""
        x = F.relu6(self._bn0(self._conv_stem(image)))
        found = []
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number in self.taken:
                found.append(x)
        return found


def _within(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
