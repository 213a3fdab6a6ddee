"""Any network as a TorchScript file: images in, features out."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtgen.config import EXTRACTORS, Extractor
from mtgen.errors import ConfigError


@EXTRACTORS.register("torchscript")
class TorchScript(nn.Module):
    """Images are resized to `side` (bicubic, antialiased; 0: left as they are), scaled to 0..1, and normalised by `mean` and `std`.

    A TorchScript file is a program of torch's own operators; torch reads it with a reader of its own, not with Python's pickle.
    """

    def __init__(self, path: Path, settings: Extractor) -> None:
        super().__init__()
        self.side = settings.side
        try:
            self.network = torch.jit.load(path, map_location="cpu")
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"evaluate.extractor.path={path}: is no TorchScript file ({str(error).splitlines()[0][:200]})") from None
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (settings.mean, settings.std))

    def forward(self, image: Tensor) -> Tensor:
        """Images `[B,3,H,W]` in 0 to 255 -> what the file's network makes of them, `[B,D]`."""
        x = image.float() / 255
        if self.side:
            x = F.interpolate(x, (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)
        return self.network((x - self.mean.to(x)) / self.std.to(x))
