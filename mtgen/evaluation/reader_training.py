"""How the independent readers are trained: Adam, and a learning rate that falls from its peak to zero by a cosine."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtgen.evaluation.cache import NO_CACHE, CacheScope
from mtgen.utils.import_guards import Adam

ImagesProgress = Callable[[int, int], None]
"""Called with images seen and their total."""
MIN_IMAGES_PER_CLASS = 10
"""Images a class that it takes to train a reader."""


@dataclass(frozen=True)
class TrainingSpec:
    """How a reader comes about.

    Attributes:
        seed: of initialization, order and augmentation; torch's global generator is left alone.
        device: where it is trained and reads.
        progress: called with images seen and their total.
        kept: where it lies, or will, when it is trained.
        times: how many times as long as usual it is trained.
    """

    seed: int = 0
    device: torch.device | str = "cpu"
    progress: ImagesProgress = lambda done, total: None
    kept: CacheScope = NO_CACHE
    times: int = 1


class ReferenceModel:
    """A small network that reads images and is independent of every run, trained when it is made, or taken from a shelf.

    Args:
        make: the network, initialized by torch's global generator, which is left as it was.
    """

    def __init__(self, make: Callable[[], nn.Module], making: TrainingSpec) -> None:
        self.making = making
        self.device = making.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(making.seed)
            self.network = make().to(self.device)

    def read(self, image: Tensor) -> Tensor:
        """Images `[B,C,H,W]` uint8 -> what is read in them, on the CPU."""
        raise NotImplementedError

    def fit(self, peak: float, images: int, batch: int, loss: Callable[[], Tensor]) -> None:
        """Minimize `loss`, which draws a batch of its own each time it is called; or load what an earlier evaluation made so.

        Args:
            images: length of the training, in images seen, rounded up to whole batches.
        """
        steps = self.making.times * -(-images // batch)
        kept = self.making.kept.at(peak=peak, steps=steps, batch=batch, network=str(self.network))
        if (found := kept.get()) is not None:
            self.network.load_state_dict(found[0])
            return
        optimizer = Adam(self.network.parameters(), peak)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            with torch.enable_grad():
                loss().backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            self.making.progress((step + 1) * batch, steps * batch)
        kept.put(self.network.state_dict())


def to_unit_range(image: Tensor, device: torch.device | str) -> Tensor:
    """uint8 images -> float32 in [-1, 1] on `device`."""
    return image.to(device).float().div_(127.5).sub_(1)
