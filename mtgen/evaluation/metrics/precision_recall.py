"""How many generated images look real, and how much of what is real can be generated, told apart."""

import torch
from torch import Tensor

from mtgen.evaluation.distances import radii, squared_distances
from mtgen.evaluation.metric import METRICS, Metric

NUM_NEIGHBORS = 5
"""A manifold is the union of balls that reach from each feature to its fifth neighbor (Naeem et al. 2020)."""


def precision_recall(real: Tensor, generated: Tensor, k: int = NUM_NEIGHBORS) -> dict[str, float]:
    """`[R,D]`, `[G,D]` -> precision, recall, density and coverage."""
    real_radii, generated_radii = radii(real, k), radii(generated, k)
    among_generated, covered = [], []
    inside = torch.zeros(len(generated), dtype=torch.int64)
    for rows, part in squared_distances(real, generated):
        inside += (part <= real_radii[rows, None]).sum(0)
        among_generated.append((part <= generated_radii).any(1))
        covered.append((part <= real_radii[rows, None]).any(1))
    return {
        "precision": float((inside > 0).double().mean()),
        "recall": float(torch.cat(among_generated).double().mean()),
        "density": float(inside.double().mean()) / k,
        "coverage": float(torch.cat(covered).double().mean()),
    }


@METRICS.register("distribution/prdc")
class PrecisionRecall(Metric):
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020), over the features that are kept.

    Precision: generated images within the manifold of real ones. Recall: real ones within that of generated ones. Density: how many real
    balls a generated image lies in, over k; may be above 1. Coverage: real images whose ball holds a generated one. At most 10,000 of each.
    """

    numbers = {f"distribution/{name}_NAME": "higher" for name in ("precision", "recall", "density", "coverage")}
    quick = False
    compared = ("train", "generated")

    def compute(self) -> dict[str, float]:
        real, generated = (self.features.get(kind, NUM_NEIGHBORS + 1).kept for kind in self.compared)
        return {
            f"distribution/{name}_{self.features.name}": value
            for name, value in precision_recall(real, generated).items()
        }
