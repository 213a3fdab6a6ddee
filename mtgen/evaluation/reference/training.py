"""Training of reference models: Adam with a learning rate that decays to zero by a cosine."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtgen.evaluation.cache import NO_CACHE, CacheScope
from mtgen.utils.import_guards import Adam
from mtgen.utils.progress_callback import CountProgress, ignore_count

MIN_IMAGES_PER_CLASS = 10
"""Training images needed per class."""


@dataclass(frozen=True)
class TrainingSpec:
    """How a reference model is trained.

    Attributes:
        seed: seed of initialization, order and augmentation; torch's global generator is left alone.
        device: where it is trained and used.
        progress: called with images seen and their total.
        cache: where the trained network is stored.
        length_factor: multiple of the default length of the training.
    """

    seed: int = 0
    device: torch.device | str = "cpu"
    progress: CountProgress = ignore_count
    cache: CacheScope = NO_CACHE
    length_factor: int = 1


class ReferenceModel:
    """A small network that predicts labels of images; trained when it is constructed, or loaded from the cache.

    Args:
        make: makes the network, initialized by torch's global generator, whose state is restored afterwards.
    """

    def __init__(self, make: Callable[[], nn.Module], spec: TrainingSpec) -> None:
        self.spec = spec
        self.device = spec.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            self.network = make().to(self.device)

    def predict(self, image: Tensor) -> Tensor:
        """Images `[B,C,H,W]` uint8 -> predictions on the CPU."""
        raise NotImplementedError

    def fit(self, peak_lr: float, images: int, batch_size: int, loss: Callable[[], Tensor]) -> None:
        """Minimize `loss`, which samples a new batch at each call; or load the result of an earlier evaluation.

        Args:
            images: length of the training, in images seen, rounded up to whole batches.
        """
        steps = self.spec.length_factor * -(-images // batch_size)
        cache = self.spec.cache.extend(peak_lr=peak_lr, steps=steps, batch=batch_size, network=str(self.network))
        if (cached := cache.get()) is not None:
            self.network.load_state_dict(cached[0])
            return
        optimizer = Adam(self.network.parameters(), peak_lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            with torch.enable_grad():
                loss().backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            self.spec.progress((step + 1) * batch_size, steps * batch_size)
        cache.put(self.network.state_dict())


def to_unit_range(image: Tensor, device: torch.device | str) -> Tensor:
    """uint8 images -> float32 in [-1, 1] on `device`."""
    return image.to(device).float().div_(127.5).sub_(1)
