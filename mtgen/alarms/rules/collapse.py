"""Mode collapse: the images of a class look alike."""

import math
from collections.abc import Iterator

from mtgen.alarms.base import ALARM_RULES, AlarmRule, Finding, Numbers, grace_images
from mtgen.config import Config

DIVERSITY, SPREAD = "generated/diversity", "generated/spread"
"""Within classes, and over all images where there are none."""

MAX_COLLAPSED_DIVERSITY = 0.35
"""Runs on digits that had collapsed stood at 0.2 to 0.3 after 20,000 images, those that went well at 0.59 or more after 26,000 and at
0.8 to 0.96 in the end; one on the edge at 0.45."""

MIN_GROWTH_FACTOR = 1.1
"""A run that stands low may be a young one: between two evaluations, its diversity then grows by more than this factor."""

MAX_FALL_FRACTION = 0.5
"""Share of its best diversity (1 at most) below which a run has lost what it had."""


@ALARM_RULES.register("collapse")
class Collapse(AlarmRule):
    """The quick evaluation's diversity (within classes, where there are some) is low and stays so, or has fallen to half of what it was."""

    def __init__(self, config: Config) -> None:
        self.youth = grace_images(config)
        self.best = 0.0
        self.before = math.inf

    def check(self, images: int, numbers: Numbers) -> Iterator[Finding]:
        name = DIVERSITY if DIVERSITY in numbers else SPREAD
        diversity = numbers.get(name)
        if diversity is None or images < self.youth:
            return
        stays_low = (
            diversity < MAX_COLLAPSED_DIVERSITY
            and self.before < math.inf
            and diversity < MIN_GROWTH_FACTOR * self.before
        )
        self.best, self.before = max(self.best, min(diversity, 1.0)), diversity
        if stays_low or diversity < MAX_FALL_FRACTION * self.best:
            before = f", {self.best:.2f} times at best before" if diversity < MAX_FALL_FRACTION * self.best else ""
            yield Finding(
                "generator",
                f"images{' of a class' * (name == DIVERSITY)} differ {diversity:.2f} times as much as real ones{before} ({name})",
                "a lower generator.learning_rate (a third to a fifth of the discriminator's), a higher tasks.generation.gamma, "
                "augment.probability around 0.3, the reconstruction task; go on from a checkpoint from before it",
            )
