"""Learning rates as a function of images seen."""

import math

from mtgen.config import TrainConfig


def lr_factor(train: TrainConfig, images: int) -> float:
    """Learning rate as a fraction of its peak: a linear warmup times half a cosine from 1 to `final_rate`.

    Args:
        train: `warmup` images are the warmup; the cosine ends at `images`; `final_rate` is a fraction of the peak.
        images: seen so far.
    """
    warmup = min(1.0, images / train.warmup) if train.warmup else 1.0
    progress = min(1.0, images / train.images)
    return warmup * (train.final_rate + (1 - train.final_rate) * 0.5 * (1 + math.cos(math.pi * progress)))
