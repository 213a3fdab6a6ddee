"""CAGrad: the direction near the mean gradient that helps the worst task most."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtgen.balancing.weighting import GateContext, Weighting
from mtgen.config import WEIGHTINGS

CAGRAD_RIDGE = 1e-10
"""Added to the diagonal (mean 1), since the solver needs a positive definite matrix."""


@WEIGHTINGS.register("cagrad")
class CAGrad(Weighting):
    """The direction that helps the worst task most, at most c |g0| away from the mean gradient g0.

    Source: Liu et al. 2021, eq. 5.

    The dual problem, min over the simplex of w'Gp + c |g0| sqrt(w'Gw), is the minimum over t of quadratic programs with
    the last term c |g0| (w'Gw / t + t) / 2. It is convex in t: bisection over t, with each program solved exactly.

    Args:
        c: radius as a fraction of the mean gradient's norm; 0 gives the mean, 1 approaches MGDA.
    """

    takes_preference = True

    def __init__(self, c: float = 0.4) -> None:
        super().__init__()
        self.c = c

    def __call__(self, gramian: Tensor, context: GateContext) -> Tensor:
        count, matrix = len(gramian), gramian.numpy()
        mean = context.preference.numpy() / count
        radius = self.c * math.sqrt(max(float(mean @ matrix @ mean), 0.0))
        if radius < 1e-9:  # the mean gradient is 0, or c is
            return torch.from_numpy(mean * count)
        worst = minimize_on_simplex(matrix + CAGRAD_RIDGE * np.eye(count), matrix @ mean, radius)
        length = math.sqrt(max(float(worst @ matrix @ worst), 0.0))
        if length < 1e-4:  # as published: no direction helps all tasks
            return torch.zeros_like(gramian[0])
        return torch.from_numpy((mean + radius / length * worst) * count / (1 + self.c))


def minimize_on_simplex(matrix: NDArray[np.float64], linear: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Minimize linear'w + radius sqrt(w'Mw) over w on the simplex: `[K,K]`, `[K]` -> `[K]`."""
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
