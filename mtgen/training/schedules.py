"""Learning rates, and all settings that follow a schedule, as functions of images seen."""

import math
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from mtgen.config import Config, Schedule, TrainConfig, value_at


def lr_factor(train: TrainConfig, images: int) -> float:
    """A constant learning rate's fraction of its peak: a linear warmup times half a cosine from 1 to `final_rate`.

    Args:
        train: `warmup` images are the warmup; the cosine ends at `images`; `final_rate` is a fraction of the peak.
        images: seen so far.
    """
    progress = min(1.0, images / train.images)
    return _warmup(train, images) * (
        train.final_rate + (1 - train.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))
    )


def learning_rate(train: TrainConfig, rate: float | Schedule, images: int) -> float:
    """A network's learning rate: a number times `lr_factor`, or the warmup times a schedule in place of the cosine."""
    if isinstance(rate, Schedule):
        return _warmup(train, images) * value_at(rate, images, train.images)
    return rate * lr_factor(train, images)


def lr_fraction(train: TrainConfig, rate: float | Schedule, images: int) -> float:
    """A network's learning rate as a fraction of its largest."""
    if isinstance(rate, Schedule):
        return learning_rate(train, rate, images) / max(rate.start, rate.end)
    return lr_factor(train, images)


def _warmup(train: TrainConfig, images: int) -> float:
    return min(1.0, images / train.warmup) if train.warmup else 1.0


def scheduled_values(config: Config, images: int) -> dict[str, float]:
    """Dotted key -> present value of every setting that follows a schedule, except the learning rates."""
    return {
        key: value_at(schedule, images, config.train.images)
        for key, schedule in _schedules(config, "")
        if not key.endswith(".learning_rate")
    }


def _schedules(section: Any, name: str) -> Iterator[tuple[str, Schedule]]:
    if isinstance(section, Schedule):
        yield name, section
    elif isinstance(section, BaseModel | dict):
        for key, value in section.items() if isinstance(section, dict) else section:
            yield from _schedules(value, f"{name}.{key}".lstrip("."))
