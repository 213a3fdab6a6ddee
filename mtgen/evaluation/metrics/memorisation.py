"""Whether generated images are copies of training images."""

from mtgen.evaluation.distances import nearest
from mtgen.evaluation.metric import METRICS, Metric, Skipped

MIN_IMAGES_PER_SET = 10
"""Images of each kind that it takes."""
SUSPECT_QUANTILE = 0.01
"""Share of the unseen real images that lie as near to a training image as a suspect does."""
MAX_PAIRS_SHOWN = 8
"""Closest pairs that are named."""


@METRICS.register("distribution/memorisation")
class Memorization(Metric):
    """How near generated images lie to their nearest training images, in proportion to how near unseen real ones (the test split) do.

    `memorisation`: mean distance of generated over mean distance of test images; 1 is what new real images would have, far below 1 are
    copies. `memorised`: share of the generated images nearer to a training image than all but 1 % of the test images are: 0.01 is innocent.
    Among at most 10,000 training images: in a larger split, copies of the others are not seen. Source: Meehan et al. 2020 (the comparison
    with held-out distances), without its statistical test.
    """

    numbers = {"distribution/memorisation_NAME": None, "distribution/memorised_NAME": "lower"}
    quick = False
    compared = ("train", "generated", "test")

    def compute(self) -> dict[str, float]:
        train, generated, test = (self.features.get(kind, MIN_IMAGES_PER_SET) for kind in self.compared)
        drawn, index = nearest(generated.kept, train.kept)
        unseen, _ = nearest(test.kept, train.kept)
        if not unseen.mean() > 0:
            raise Skipped("the test images are the training images")
        order = drawn.argsort()[:MAX_PAIRS_SHOWN]
        self.features.closest = list(
            zip(
                generated.position[order].tolist(),
                train.position[index[order]].tolist(),
                drawn[order].tolist(),
                strict=True,
            )
        )
        name = self.features.name
        return {
            f"distribution/memorisation_{name}": float(drawn.mean() / unseen.mean()),
            f"distribution/memorised_{name}": float((drawn < unseen.quantile(SUSPECT_QUANTILE)).double().mean()),
        }
