"""Inception v3 as in the definition of FID: the network of 2015-12-05, with TensorFlow 1's resizing."""

from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mtgen.config import EXTRACTORS, ExtractorConfig
from mtgen.evaluation.extractor import load_strictly

INCEPTION_SIDE_PIXELS = 299
"""Side of the input images, pixels."""

POINT, THREE, FIVE = (1, 1), (3, 3), (5, 5)


class _Conv(nn.Module):
    """Convolution, batch normalization, ReLU; without padding unless `same`."""

    def __init__(self, channels: int, width: int, kernel: tuple[int, int], stride: int = 1, same: bool = True) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if same else (0, 0)
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _average(x: Tensor) -> Tensor:
    """3x3 average pooling that ignores the padding, as TensorFlow does."""
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class _A(nn.Module):
    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(channels, 64, POINT)
        self.branch5x5_1 = _Conv(channels, 48, POINT)
        self.branch5x5_2 = _Conv(48, 64, FIVE)
        self.branch3x3dbl_1 = _Conv(channels, 64, POINT)
        self.branch3x3dbl_2 = _Conv(64, 96, THREE)
        self.branch3x3dbl_3 = _Conv(96, 96, THREE)
        self.branch_pool = _Conv(channels, pooled, POINT)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat(
            [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(_average(x))], 1
        )


class _B(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch3x3 = _Conv(288, 384, THREE, 2, same=False)
        self.branch3x3dbl_1 = _Conv(288, 64, POINT)
        self.branch3x3dbl_2 = _Conv(64, 96, THREE)
        self.branch3x3dbl_3 = _Conv(96, 96, THREE, 2, same=False)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class _C(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(768, 192, POINT)
        self.branch7x7_1 = _Conv(768, width, POINT)
        self.branch7x7_2 = _Conv(width, width, (1, 7))
        self.branch7x7_3 = _Conv(width, 192, (7, 1))
        self.branch7x7dbl_1 = _Conv(768, width, POINT)
        self.branch7x7dbl_2 = _Conv(width, width, (7, 1))
        self.branch7x7dbl_3 = _Conv(width, width, (1, 7))
        self.branch7x7dbl_4 = _Conv(width, width, (7, 1))
        self.branch7x7dbl_5 = _Conv(width, 192, (1, 7))
        self.branch_pool = _Conv(768, 192, POINT)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_average(x))], 1)


class _D(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(768, 192, POINT)
        self.branch3x3_2 = _Conv(192, 320, THREE, 2, same=False)
        self.branch7x7x3_1 = _Conv(768, 192, POINT)
        self.branch7x7x3_2 = _Conv(192, 192, (1, 7))
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1))
        self.branch7x7x3_4 = _Conv(192, 192, THREE, 2, same=False)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, 2)], 1)


class _E(nn.Module):
    """The last block uses max pooling, as the published graph does, the one before average pooling."""

    def __init__(self, channels: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.branch1x1 = _Conv(channels, 320, POINT)
        self.branch3x3_1 = _Conv(channels, 384, POINT)
        self.branch3x3_2a = _Conv(384, 384, (1, 3))
        self.branch3x3_2b = _Conv(384, 384, (3, 1))
        self.branch3x3dbl_1 = _Conv(channels, 448, POINT)
        self.branch3x3dbl_2 = _Conv(448, 384, THREE)
        self.branch3x3dbl_3a = _Conv(384, 384, (1, 3))
        self.branch3x3dbl_3b = _Conv(384, 384, (3, 1))
        self.branch_pool = _Conv(channels, 192, POINT)

    def forward(self, x: Tensor) -> Tensor:
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        single = torch.cat([self.branch3x3_2a(single), self.branch3x3_2b(single)], 1)
        double = torch.cat([self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)], 1)
        pooled = F.max_pool2d(x, 3, 1, 1) if self.last else _average(x)
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(pooled)], 1)


class InceptionV3(nn.Module):
    """uint8 images `[B,3,H,W]` -> the 2,048 features after the last average pooling.

    Parameters are named as in pt_inception-2015-12-05 (pytorch-fid, torch-fidelity), whose weights come from the
    TensorFlow graph. Source: Szegedy et al. 2016; Heusel et al. 2017.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, THREE, 2, same=False)
        self.Conv2d_2a_3x3 = _Conv(32, 32, THREE, same=False)
        self.Conv2d_2b_3x3 = _Conv(32, 64, THREE)
        self.Conv2d_3b_1x1 = _Conv(64, 80, POINT)
        self.Conv2d_4a_3x3 = _Conv(80, 192, THREE, same=False)
        self.Mixed_5b = _A(192, 32)
        self.Mixed_5c = _A(256, 64)
        self.Mixed_5d = _A(288, 64)
        self.Mixed_6a = _B()
        self.Mixed_6b = _C(128)
        self.Mixed_6c = _C(160)
        self.Mixed_6d = _C(160)
        self.Mixed_6e = _C(192)
        self.Mixed_7a = _D()
        self.Mixed_7b = _E(1280, last=False)
        self.Mixed_7c = _E(2048, last=True)

    def forward(self, image: Tensor) -> Tensor:
        """Images `[B,3,H,W]` in 0 to 255 -> features `[B,2048]` after the last pooling."""
        x = (resized(image.float()) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))


def resized(x: Tensor, side: int = INCEPTION_SIDE_PIXELS) -> Tensor:
    """`[B,C,H,W]` -> `[B,C,side,side]` as in TensorFlow 1: bilinear, pixel i at i (not i + 1/2), no antialiasing."""
    for axis in (2, 3):
        n = x.shape[axis]
        source = torch.arange(side, device=x.device, dtype=torch.float32) * (n / side)
        low = source.long().clamp_max(n - 1)
        fraction = (source - low).view([-1 if a == axis else 1 for a in range(4)])
        before, after = x.index_select(axis, low), x.index_select(axis, (low + 1).clamp_max(n - 1))
        x = before + (after - before) * fraction
    return x


@EXTRACTORS.register("inception")
def inception(path: Path, settings: ExtractorConfig) -> nn.Module:
    """`InceptionV3` from a safetensors file; its classification layer (`fc.`) is ignored."""
    network = InceptionV3()
    load_strictly(
        network, load_file(path), path, lambda name: name.startswith("fc.") or name.endswith("num_batches_tracked")
    )
    return folded(network)


def folded(network: InceptionV3) -> nn.Module:
    """The same function with each normalization folded into its convolution, which saves time."""
    for module in network.eval().modules():
        if isinstance(module, _Conv):
            module.conv, module.bn = fuse_conv_bn_eval(module.conv, cast(nn.BatchNorm2d, module.bn)), nn.Identity()
            module.conv.weight.data = module.conv.weight.data.contiguous(memory_format=torch.channels_last)
    return network
