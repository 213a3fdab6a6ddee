"""How the independent readers are trained: Adam, and a learning rate that falls from its peak to zero by a cosine."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mtgen.evaluation.store import Shelf
from mtgen.lean import Adam

Seen = Callable[[int, int], None]
"""Called with images seen and their total."""
FEWEST = 10
"""Images a class that it takes to train a reader."""


class Reader:
    """A small network that reads images and is independent of every run, trained when it is made, or taken from a shelf.

    Args:
        make: the network, initialised by torch's global generator, which is left as it was.
        seed: of the initialisation.
    """

    def __init__(self, make: Callable[[], nn.Module], seed: int, device: torch.device | str) -> None:
        self.device = device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = make().to(device)

    def read(self, image: Tensor) -> Tensor:
        """Images `[B,C,H,W]` uint8 -> what is read in them, on the CPU."""
        raise NotImplementedError

    def fit(self, peak: float, steps: int, batch: int, loss: Callable[[], Tensor], progress: Seen, kept: Shelf) -> None:
        """Minimise `loss`, which draws a batch of its own each time it is called; or load what an earlier evaluation made so."""
        kept = kept.at(peak=peak, steps=steps, batch=batch, network=str(self.network))
        if (found := kept.get()) is not None:
            self.network.load_state_dict(found[0])
            return
        optimiser = Adam(self.network.parameters(), peak)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for step in range(steps):
            with torch.enable_grad():
                loss().backward()
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
            progress((step + 1) * batch, steps * batch)
        kept.put(self.network.state_dict())


def as_input(image: Tensor, device: torch.device | str) -> Tensor:
    """uint8 images -> float32 in [-1, 1] on `device`."""
    return image.to(device).float().div_(127.5).sub_(1)
