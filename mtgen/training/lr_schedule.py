"""Learning rates as a function of images seen."""

import math

from mtgen.config import TrainConfig


def lr_factor(train: TrainConfig, images: int) -> float:
    """Factor of the peak learning rate: a linear rise over `warmup`, then a half cosine down to `final_rate` at `train.images`."""
    rise = min(1.0, images / train.warmup) if train.warmup else 1.0
    progress = min(1.0, images / train.images)
    return rise * (train.final_rate + (1 - train.final_rate) * 0.5 * (1 + math.cos(math.pi * progress)))
