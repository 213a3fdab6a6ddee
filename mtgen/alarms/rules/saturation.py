"""Saturation: the discriminator tells real from generated so surely that the generator learns nothing from it."""

from collections.abc import Iterator

from mtgen.alarms.base import ALARM_RULES, AlarmRule, DurationTracker, Finding, Numbers, grace_images
from mtgen.config import Config

ADVERSARIAL_LOSS = "generation_adversarial"

MAX_SATURATED_LOSS = 0.05
"""Loss of a discriminator that is right by three on average (softplus(-3)); by chance it is ln 2 = 0.69. Measured on digits: 0.3 to 0.6 in
the first 7,500 images of a run that went well, 0.1 with a generator that stands still, under 0.007 without the penalties."""

MIN_LOGIT_GAP = 5.0
"""Mean difference of real and generated logits; in the same runs 1 to 2.6, 2.3, and 6 to 10."""


@ALARM_RULES.register("saturation")
class Saturation(AlarmRule):
    """The relativistic losses say that the logits of real and generated images lie far apart, and have done so for long.

    The generator's loss is softplus(gap), the discriminator's softplus(-gap): their difference is the mean gap itself.
    """

    def __init__(self, config: Config) -> None:
        self.youth = grace_images(config)
        self.lasting = DurationTracker()
        self.weight = config.task_settings()["generation"].weight if config.generates else 1.0

    def check(self, images: int, numbers: Numbers) -> Iterator[Finding]:
        discriminator, generator = (numbers.get(f"loss_{side}/{ADVERSARIAL_LOSS}") for side in "dg")
        if discriminator is None or generator is None:
            return
        loss, gap = discriminator / self.weight, (generator - discriminator) / self.weight
        lasted = self.lasting.images("saturated", loss < MAX_SATURATED_LOSS and gap > MIN_LOGIT_GAP, images)
        if lasted and lasted >= self.youth:
            norm = numbers.get("gradient/generator_norm")
            gradient = "" if norm is None else f"; the generator's gradient has a norm of {norm:.2g}"
            yield Finding(
                "discriminator",
                f"for {lasted:,} images real and generated logits lay far apart, now {gap:.1f}, with an adversarial loss of {loss:.1g} "
                f"(by chance 0.69){gradient}",
                "a higher tasks.generation.gamma, augment.target=0.6 (or a higher augment.probability), a lower "
                "discriminator.learning_rate, a narrower discriminator; more data, where there is little",
            )
