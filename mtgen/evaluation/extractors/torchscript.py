"""Any network as a TorchScript file that maps images to features."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtgen.config import EXTRACTORS, ExtractorConfig
from mtgen.networks.torchscript import read_torchscript


@EXTRACTORS.register("torchscript")
class TorchScript(nn.Module):
    """Images are resized to `side` (bicubic, antialiased; 0: kept), scaled to 0..1, normalized by `mean` and `std`."""

    def __init__(self, path: Path, settings: ExtractorConfig) -> None:
        super().__init__()
        self.side = settings.side
        self.network = read_torchscript(path, f"evaluate.extractor.path={path}")
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (settings.mean, settings.std))

    def forward(self, image: Tensor) -> Tensor:
        """Images `[B,3,H,W]` in 0 to 255 -> features `[B,D]`."""
        x = image.float() / 255
        if self.side:
            x = F.interpolate(x, (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)
        return self.network((x - self.mean.to(x)) / self.std.to(x))
