"""CAGrad: the direction near the mean gradient that helps the worst task most."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtgen.balancing.weighting import Weighting
from mtgen.config import WEIGHTINGS

CAGRAD_RIDGE = 1e-10
"""Added to the diagonal (mean 1): the solver wants a positive definite matrix."""


@WEIGHTINGS.register("cagrad")
class CAGrad(Weighting):
    """Among all directions within c times the mean gradient's length of it, the one that helps the worst task most. Liu et al. 2021, eq. 5.

    The dual, min over the simplex of w'Gp + c |g0| sqrt(w'Gw), is the least over t of quadratic programs with c |g0| (w'Gw / t + t) / 2,
    and convex in t: a bisection, each point solved exactly.

    Args:
        c: radius, as a share of the mean gradient's length: 0 is the mean, 1 nears MGDA.
    """

    takes_preference = True

    def __init__(self, c: float = 0.4) -> None:
        super().__init__()
        self.c = c

    def __call__(self, gramian: Tensor) -> Tensor:
        count, matrix = len(gramian), gramian.numpy().astype(np.float64)
        mean = self.preference_or_ones(gramian).numpy().astype(np.float64) / count
        radius = self.c * math.sqrt(max(float(mean @ matrix @ mean), 0.0))
        if radius < 1e-9:  # the mean gradient is 0, or has to be taken as it is
            return torch.from_numpy(mean * count).to(gramian)
        worst = minimize_on_simplex(matrix + CAGRAD_RIDGE * np.eye(count), matrix @ mean, radius)
        length = math.sqrt(max(float(worst @ matrix @ worst), 0.0))
        if length < 1e-4:  # as published: a point where no direction helps all
            return torch.zeros_like(gramian[0])
        return torch.from_numpy((mean + radius / length * worst) * count / (1 + self.c)).to(gramian)


def minimize_on_simplex(matrix: NDArray[np.float64], linear: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """The w on the simplex that makes linear'w + radius sqrt(w'Mw) least: `[K,K]`, `[K]` -> `[K]`."""
    from quadprog import solve_qp

    count = len(linear)
    constraints, bounds = np.hstack([np.ones((count, 1)), np.eye(count)]), np.array([1.0] + [0.0] * count)

    def at(t: float) -> NDArray[np.float64]:
        w: NDArray[np.float64] = solve_qp(radius / t * matrix, -linear, constraints, bounds, 1)[0].clip(min=0)
        return w / w.sum()

    low, high = 1e-8, math.sqrt(float(np.diag(matrix).max()))
    for _ in range(60):
        t = math.sqrt(low * high)
        w = at(t)
        if (length := math.sqrt(float(w @ matrix @ w))) > t:
            low = t
        else:
            high = t
        if high / low < 1 + 1e-12 or abs(length / t - 1) < 1e-12:
            break
    return w
