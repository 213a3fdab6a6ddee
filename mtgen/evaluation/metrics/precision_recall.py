"""Fidelity and coverage of generated images, separately."""

import torch
from torch import Tensor

from mtgen.evaluation.base import Stream
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
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Computed over at most 10,000 features each. Precision: fraction of generated images within the manifold of real
    ones. Recall: fraction of real images within the manifold of generated ones. Density: number of real balls that
    contain a generated image, over k; can exceed 1. Coverage: fraction of real images whose ball contains a generated
    one.
    """

    numbers = {f"distribution/{name}_NAME": "higher" for name in ("precision", "recall", "density", "coverage")}
    compares = (Stream.TRAIN, Stream.GENERATED)
    quick = False

    def compute(self) -> dict[str, float]:
        real, generated = (self.features.get(stream, NUM_NEIGHBORS + 1).kept for stream in self.compares)
        return {
            f"distribution/{name}_{self.features.name}": value
            for name, value in precision_recall(real, generated).items()
        }
