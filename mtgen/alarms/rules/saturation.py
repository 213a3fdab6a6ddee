"""Saturation: the discriminator separates real from generated so well that the generator gets no useful gradient."""

from collections.abc import Iterator

from mtgen.alarms.base import ALARM_RULES, AlarmRule, DurationTracker, Finding, Numbers, grace_images
from mtgen.config import Config

ADVERSARIAL_LOSS = "generation_adversarial"

MAX_SATURATED_LOSS = 0.05
"""Loss of a discriminator whose logits differ by three on average (softplus(-3)); at chance level it is ln 2 = 0.69.
Measured on digits: 0.3 to 0.6 in the first 7,500 images of a good run, 0.1 against a generator that is not trained,
below 0.007 without the penalties."""

MIN_LOGIT_GAP = 5.0
"""Mean difference of real and generated logits; in the same runs 1 to 2.6, 2.3, and 6 to 10."""

HELP = (
    "a higher tasks.generation.gamma, augment.target=0.6 (or a higher augment.probability), a lower "
    "discriminator.learning_rate, a narrower discriminator; more data, if there is little"
)


@ALARM_RULES.register("saturation")
class Saturation(AlarmRule):
    """The relativistic losses show that the logits of real and generated images have been far apart for long.

    The generator's loss is softplus(gap), the discriminator's softplus(-gap); their difference is the mean gap.
    """

    def __init__(self, config: Config) -> None:
        self.grace_images = grace_images(config)
        self.duration = DurationTracker()
        self.weight = config.task_settings()["generation"].weight if config.generates else 1.0

    def check(self, images: int, numbers: Numbers) -> Iterator[Finding]:
        discriminator, generator = (numbers.get(f"loss_{letter}/{ADVERSARIAL_LOSS}") for letter in "dg")
        if discriminator is None or generator is None:
            return
        loss, gap = discriminator / self.weight, (generator - discriminator) / self.weight
        saturated = loss < MAX_SATURATED_LOSS and gap > MIN_LOGIT_GAP
        duration = self.duration.images("saturated", saturated, images)
        if duration and duration >= self.grace_images:
            norm = numbers.get("gradient/generator_norm")
            gradient = "" if norm is None else f"; the norm of the generator's gradient is {norm:.2g}"
            yield Finding(
                "discriminator",
                f"for {duration:,} images, real and generated logits have been far apart, now by {gap:.1f}, with an "
                f"adversarial loss of {loss:.1g} (chance level: 0.69){gradient}",
                HELP,
            )
