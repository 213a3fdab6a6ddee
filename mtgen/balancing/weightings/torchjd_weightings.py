"""Weightings from TorchJD (Quinton and Rey 2024), scaled to 1 for each of K equal, orthogonal gradients."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mtgen.balancing.weighting import GateContext, Weighting
from mtgen.config import WEIGHTINGS


@contextmanager
def seeded_from(gramian: Tensor) -> Iterator[None]:
    """Seed torch's random numbers from the Gramian within the block, the same on all workers and in resumed runs.

    The seed is taken from the exponents of its entries, since their last bits depend on the number of workers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(torch.frexp(gramian).exponent.cpu().numpy().tobytes()))
        yield


@WEIGHTINGS.register("upgrad")
class UPGrad(Weighting):
    """Each gradient projected onto the cone without conflict, then averaged.

    Source: Quinton and Rey 2024, "Jacobian descent".
    """

    takes_preference = True

    def __call__(self, gramian: Tensor, context: GateContext) -> Tensor:
        from torchjd.aggregation import UPGradWeighting

        return UPGradWeighting(context.preference)(gramian)


@WEIGHTINGS.register("mgda")
class MGDA(Weighting):
    """The shortest convex combination of the gradients. Source: Désidéri 2012; Sener and Koltun 2018."""

    def __call__(self, gramian: Tensor, context: GateContext) -> Tensor:
        from torchjd.aggregation import MGDAWeighting

        return MGDAWeighting()(gramian) * len(gramian)


@WEIGHTINGS.register("pcgrad")
class PCGrad(Weighting):
    """Each gradient without its components against the others, projected out in random order, then summed.

    Source: Yu et al. 2020.
    """

    def __call__(self, gramian: Tensor, context: GateContext) -> Tensor:
        from torchjd.aggregation import PCGradWeighting

        with seeded_from(gramian):
            return PCGradWeighting()(gramian)


@WEIGHTINGS.register("gradvac")
class GradVac(Weighting):
    """As PCGrad, but towards each pair's usual cosine instead of towards 0. Source: Wang et al. 2021.

    Args:
        beta: weight of the newest cosine in the running average.
    """

    def __init__(self, beta: float = 0.01) -> None:
        super().__init__()
        self.beta = beta

    def __call__(self, gramian: Tensor, context: GateContext) -> Tensor:
        from torchjd.aggregation import GradVacWeighting

        # TorchJD's object resets its state whenever the set of tasks changes, so the state is kept here and set at each
        # call.
        weighting: Any = GradVacWeighting(self.beta)
        rows, cosines = context.active, self.buffer("cosines", context, square=True)
        weighting._phi_t = cosines[rows][:, rows].to(gramian)
        weighting._state_key = (len(gramian), gramian.dtype)
        with seeded_from(gramian):
            weights = weighting(gramian)
        cosines[rows[:, None], rows] = weighting._phi_t.double()
        return weights


@WEIGHTINGS.register("aligned_mtl")
class AlignedMTL(Weighting):
    """The gradients' matrix made orthogonal, scaled to its smallest singular value. Source: Senushkin et al. 2023."""

    takes_preference = True

    def __call__(self, gramian: Tensor, context: GateContext) -> Tensor:
        from torchjd.aggregation import AlignedMTLWeighting

        return AlignedMTLWeighting(context.preference)(gramian)


@WEIGHTINGS.register("imtl_g")
class IMTLG(Weighting):
    """The sum with equal projections onto all gradients' directions. Source: Liu et al. 2021; Quinton and Rey 2024."""

    def __call__(self, gramian: Tensor, context: GateContext) -> Tensor:
        from torchjd.aggregation import IMTLGWeighting

        return IMTLGWeighting()(gramian) * len(gramian)


@WEIGHTINGS.register("sdmgrad")
class SDMGrad(Weighting):
    """MGDA regularized towards a preferred direction, with weights carried over from step to step.

    Source: Xiao et al. 2023.

    The paper multiplies the gradients of two independent batches. A gate has one batch, so noise biases the weights as
    in MGDA.

    Args:
        strength: lambda, the strength of the regularization.
        rate: learning rate of the inner descent on the simplex.
        momentum: momentum of the inner descent.
        iterations: steps of the inner descent.
    """

    takes_preference = True

    def __init__(self, strength: float = 0.3, rate: float = 10.0, momentum: float = 0.5, iterations: int = 20) -> None:
        super().__init__()
        self.strength = strength
        self.rate = rate
        self.momentum = momentum
        self.iterations = int(iterations)

    def __call__(self, gramian: Tensor, context: GateContext) -> Tensor:
        from torchjd.aggregation import SDMGradWeighting

        count, rows, kept = len(gramian), context.active, self.buffer("weights", context, 1.0)
        preference = context.preference / count
        weighting: Any = SDMGradWeighting(self.rate, self.momentum, self.iterations, self.strength, preference)
        before = kept[rows].to(gramian)
        weighting._w = before / before.sum() if before.sum() > 0 else torch.full_like(before, 1 / count)
        weighting._state_key = (count, gramian.dtype, gramian.device)
        weights = weighting(gramian)
        kept[rows] = weighting._w.double() * kept[rows].sum()
        return weights * count
