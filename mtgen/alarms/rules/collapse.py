"""Mode collapse: the generated images of a class look alike."""

import math
from collections.abc import Iterator

from mtgen.alarms.base import ALARM_RULES, AlarmRule, Finding, Numbers, grace_images
from mtgen.config import Config

DIVERSITY = "generated/diversity"
"""Diversity within classes."""
SPREAD = "generated/spread"
"""Diversity of all images, for data without classes."""

MAX_COLLAPSED_DIVERSITY = 0.35
"""Runs on digits that had collapsed had a diversity of 0.2 to 0.3 after 20,000 images. Good ones had at least 0.59
after 26,000 images and 0.8 to 0.96 in the end; one on the edge had 0.45."""

MIN_GROWTH_FACTOR = 1.1
"""A low diversity can also mean that the run is young: between two evaluations it then grows by more than this
factor."""

MAX_FALL_FRACTION = 0.5
"""Fraction of its best diversity (at most 1) below which a run has collapsed."""

HELP = (
    "a lower generator.learning_rate (a third to a fifth of the discriminator's), a higher tasks.generation.gamma, "
    "augment.probability around 0.3, the reconstruction task; resume from an earlier checkpoint"
)


@ALARM_RULES.register("collapse")
class Collapse(AlarmRule):
    """The diversity of the quick evaluation is low and stays low, or has fallen to half of its best."""

    def __init__(self, config: Config) -> None:
        self.grace_images = grace_images(config)
        self.best = 0.0
        self.before = math.inf

    def check(self, images: int, numbers: Numbers) -> Iterator[Finding]:
        name = DIVERSITY if DIVERSITY in numbers else SPREAD
        diversity = numbers.get(name)
        if diversity is None or images < self.grace_images:
            return
        stays_low = (
            diversity < MAX_COLLAPSED_DIVERSITY
            and self.before < math.inf
            and diversity < MIN_GROWTH_FACTOR * self.before
        )
        self.best, self.before = max(self.best, min(diversity, 1.0)), diversity
        has_fallen = diversity < MAX_FALL_FRACTION * self.best
        if stays_low or has_fallen:
            subject = "images of a class" if name == DIVERSITY else "images"
            before = f", down from {self.best:.2f}" if has_fallen else ""
            what = f"{subject} vary {diversity:.2f} times as much as real ones{before} ({name})"
            yield Finding("generator", what, HELP)
