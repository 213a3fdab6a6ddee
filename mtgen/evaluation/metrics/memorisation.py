"""Memorization: whether generated images are copies of training images."""

from mtgen.evaluation.base import Skipped, Stream
from mtgen.evaluation.distances import nearest
from mtgen.evaluation.metric import METRICS, Metric

MIN_IMAGES_PER_SET = 10
"""Images needed of each stream."""
SUSPECT_QUANTILE = 0.01
"""Fraction of the real test images that are as close to a training image as a suspected copy."""
MAX_PAIRS_SHOWN = 8
"""Closest pairs that are reported."""


@METRICS.register("distribution/memorisation")
class Memorization(Metric):
    """Distance of generated images to their nearest training images, relative to that of real test images.

    `memorisation`: mean distance of generated images over that of test images; 1 is what new real images would have,
    far below 1 are copies. `memorised`: fraction of the generated images that are closer to a training image than all
    but 1 % of the test images; 0.01 is unsuspicious. Computed over at most 10,000 training images, so copies of the
    others go unnoticed. Source: Meehan et al. 2020 (the comparison with held-out distances), without their statistical
    test.
    """

    numbers = {"distribution/memorisation_NAME": None, "distribution/memorised_NAME": "lower"}
    compares = (Stream.TRAIN, Stream.GENERATED, Stream.TEST)
    quick = False

    def compute(self) -> dict[str, float]:
        train, generated, test = (self.features.get(stream, MIN_IMAGES_PER_SET) for stream in self.compares)
        distance, index = nearest(generated.kept, train.kept)
        real_distance, _ = nearest(test.kept, train.kept)
        if not real_distance.mean() > 0:
            raise Skipped("the test images are the training images")
        order = distance.argsort()[:MAX_PAIRS_SHOWN]
        pairs = (generated.position[order], train.position[index[order]], distance[order])
        self.features.closest = list(zip(*(column.tolist() for column in pairs), strict=True))
        suspects = (distance < real_distance.quantile(SUSPECT_QUANTILE)).double().mean()
        return {
            f"distribution/memorisation_{self.features.name}": float(distance.mean() / real_distance.mean()),
            f"distribution/memorised_{self.features.name}": float(suspects),
        }
