"""Weights at which every task gains in proportion: the Nash bargain and alpha-fairness, solved exactly on the Gramian."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtgen.balancing.weighting import Weighting
from mtgen.config import WEIGHTINGS

BARGAIN_RIDGE = 1e-9
"""Added to the diagonal (mean 1), so that there is a solution where gradients are exactly opposite; the sum stays bounded there."""


def bargain(gramian: NDArray[np.float64], preference: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """The weights w > 0 with G w = p w^(-1/alpha): `[K,K]`, `[K]` -> `[K]`.

    They are the one minimum of 1/2 w'Gw - sum p f(w) with f'(w) = w^(-1/alpha), a convex function, found by Newton's method.
    """
    power = -1 / alpha
    matrix = gramian + BARGAIN_RIDGE * np.eye(len(gramian))

    def value(w: NDArray[np.float64]) -> float:
        f = np.log(w) if power == -1 else w ** (1 + power) / (1 + power)
        return float(0.5 * w @ matrix @ w - preference @ f)

    w = (preference / np.diag(matrix)) ** (1 / (1 - power))  # the solution for orthogonal gradients
    for _ in range(200):
        gradient = matrix @ w - preference * w**power
        step = np.linalg.solve(matrix - np.diag(preference * power * w ** (power - 1)), gradient)
        decrease = float(gradient @ step)
        if decrease < 1e-22:
            break
        size = min(1.0, 0.9 / max(float((step / w).max()), 1e-30))  # stay positive
        while size > 1e-12 and not value(w - size * step) <= value(w) - 0.1 * size * decrease:
            size /= 2
            if decrease < 1e-12:  # the values differ by rounding alone
                size = min(1.0, 0.9 / max(float((step / w).max()), 1e-30))
                break
        w = w - size * step
    return w


@WEIGHTINGS.register("nash_mtl")
class NashMTL(Weighting):
    """The Nash bargain: every task's gain, relative to its weight, is the same; G w = 1 / w. Source: Navon et al. 2022, eq. 3.

    Solved exactly, where the published program approximates by a sequence of convex ones.
    """

    takes_preference = True
    alpha = 1.0

    def __call__(self, gramian: Tensor) -> Tensor:
        liked = self.preference_or_ones(gramian).numpy().astype(np.float64)
        return torch.from_numpy(bargain(gramian.numpy().astype(np.float64), liked, self.alpha)).to(gramian)


@WEIGHTINGS.register("fairgrad")
class FairGrad(NashMTL):
    """Alpha-fair gains: G w = w^(-1/alpha). 1 is the Nash bargain, large alpha the largest least gain. Source: Ban and Ji 2024, eq. 4.

    Args:
        alpha: kind of fairness, above 0.
    """

    def __init__(self, alpha: float = 2.0) -> None:
        super().__init__()
        if alpha <= 0:
            raise ValueError(f"alpha={alpha}: has to be above 0; 1 is the Nash bargain")
        self.alpha = alpha
