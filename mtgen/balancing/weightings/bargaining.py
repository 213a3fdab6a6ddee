"""Nash bargaining and alpha-fairness, solved exactly on the Gramian: every task gains in proportion to its weight."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtgen.balancing.weighting import GateContext, Weighting
from mtgen.config import WEIGHTINGS

BARGAIN_RIDGE = 1e-9
"""Added to the diagonal (mean 1), so that a bounded solution exists where gradients are exactly opposite."""


def bargain(gramian: NDArray[np.float64], preference: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Solve G w = p w^(-1/alpha) for weights w > 0: `[K,K]`, `[K]` -> `[K]`.

    The solution is the unique minimum of the convex function 1/2 w'Gw - sum p f(w) with f'(w) = w^(-1/alpha), found by
    Newton's method.
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
        size = min(1.0, 0.9 / max(float((step / w).max()), 1e-30))  # keeps w positive
        while size > 1e-12 and not value(w - size * step) <= value(w) - 0.1 * size * decrease:
            size /= 2
            if decrease < 1e-12:  # the values differ by rounding alone
                size = min(1.0, 0.9 / max(float((step / w).max()), 1e-30))
                break
        w = w - size * step
    return w


@WEIGHTINGS.register("nash_mtl")
class NashMTL(Weighting):
    """Nash bargaining: every task's gain, relative to its weight, is the same; G w = 1 / w.

    Source: Navon et al. 2022, eq. 3.

    Solved exactly, where the published code approximates by a sequence of convex problems.
    """

    takes_preference = True
    alpha = 1.0

    def __call__(self, gramian: Tensor, context: GateContext) -> Tensor:
        return torch.from_numpy(bargain(gramian.numpy(), context.preference.numpy(), self.alpha))


@WEIGHTINGS.register("fairgrad")
class FairGrad(NashMTL):
    """Alpha-fair gains: G w = w^(-1/alpha). Source: Ban and Ji 2024, eq. 4.

    Args:
        alpha: kind of fairness, above 0; 1 is Nash bargaining, large values approach max-min fairness.
    """

    def __init__(self, alpha: float = 2.0) -> None:
        super().__init__()
        if alpha <= 0:
            raise ValueError(f"alpha={alpha}: must be above 0; 1 is Nash bargaining")
        self.alpha = alpha
