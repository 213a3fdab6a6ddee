"""Saturation: the discriminator tells real from generated so surely that the generator learns nothing from it."""

from collections.abc import Iterator

from mtgen.alarms.base import RULES, Finding, Lasting, Numbers, Rule, youth
from mtgen.config import Config

LOSS = "generation_adversarial"

SURE = 0.05
"""Loss of a discriminator that is right by three on average (softplus(-3)); by chance it is ln 2 = 0.69. Measured on digits: 0.3 to 0.6 in
the first 7,500 images of a run that went well, 0.1 with a generator that stands still, under 0.007 without the penalties."""

GAP = 5.0
"""Mean difference of real and generated logits; in the same runs 1 to 2.6, 2.3, and 6 to 10."""


@RULES.register("saturation")
class Saturation(Rule):
    """The relativistic losses say that the logits of real and generated images lie far apart, and have done so for long.

    The generator's loss is softplus(gap), the discriminator's softplus(-gap): their difference is the mean gap itself.
    """

    def __init__(self, config: Config) -> None:
        self.youth = youth(config)
        self.lasting = Lasting()
        self.weight = config.task_settings()["generation"].weight if config.generates else 1.0

    def look(self, images: int, numbers: Numbers) -> Iterator[Finding]:
        discriminator, generator = (numbers.get(f"loss_{side}/{LOSS}") for side in "dg")
        if discriminator is None or generator is None:
            return
        loss, gap = discriminator / self.weight, (generator - discriminator) / self.weight
        lasted = self.lasting.images("saturated", loss < SURE and gap > GAP, images)
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
