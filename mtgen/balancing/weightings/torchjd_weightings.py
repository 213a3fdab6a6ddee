"""Weightings from TorchJD (Quinton and Rey 2024), scaled to 1 for each of K equal, orthogonal gradients."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mtgen.balancing.weighting import Weighting
from mtgen.config import WEIGHTINGS


@contextmanager
def seeded_from(gramian: Tensor) -> Iterator[None]:
    """Within it, torch's random numbers follow from the Gramian, so that all workers and every resumed run draw the same.

    Its entries' exponents are the seed, since their last bits depend on the number of workers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(torch.frexp(gramian).exponent.cpu().numpy().tobytes()))
        yield


@WEIGHTINGS.register("upgrad")
class UPGrad(Weighting):
    """Each gradient projected onto the cone of no conflict, then averaged. Source: Quinton and Rey 2024, "Jacobian descent"."""

    takes_preference = True

    def __call__(self, gramian: Tensor) -> Tensor:
        from torchjd.aggregation import UPGradWeighting

        return UPGradWeighting(self.preference_or_ones(gramian))(gramian)


@WEIGHTINGS.register("mgda")
class MGDA(Weighting):
    """The shortest convex combination of the gradients. Source: Désidéri 2012; Sener and Koltun 2018."""

    def __call__(self, gramian: Tensor) -> Tensor:
        from torchjd.aggregation import MGDAWeighting

        return MGDAWeighting()(gramian) * len(gramian)


@WEIGHTINGS.register("pcgrad")
class PCGrad(Weighting):
    """Each gradient without its part against the others, in random order, then summed. Source: Yu et al. 2020."""

    def __call__(self, gramian: Tensor) -> Tensor:
        from torchjd.aggregation import PCGradWeighting

        with seeded_from(gramian):
            return PCGradWeighting()(gramian)


@WEIGHTINGS.register("gradvac")
class GradVac(Weighting):
    """As PCGrad, but towards the cosine that each pair usually has, not towards 0. Source: Wang et al. 2021.

    Args:
        beta: share of the newest cosine in the running one.
    """

    def __init__(self, beta: float = 0.01) -> None:
        super().__init__()
        self.beta = beta

    def __call__(self, gramian: Tensor) -> Tensor:
        from torchjd.aggregation import GradVacWeighting

        weighting: Any = GradVacWeighting(
            self.beta
        )  # it forgets where tasks come and go, so its state is set each time
        rows, cosines = self.rows(gramian), self.buffer("cosines", gramian, square=True)
        weighting._phi_t, weighting._state_key = cosines[rows][:, rows].to(gramian), (len(gramian), gramian.dtype)
        with seeded_from(gramian):
            weights = weighting(gramian)
        cosines[rows[:, None], rows] = weighting._phi_t.double()
        return weights


@WEIGHTINGS.register("aligned_mtl")
class AlignedMTL(Weighting):
    """The gradients' matrix made orthogonal, at the scale of its smallest singular value. Source: Senushkin et al. 2023."""

    takes_preference = True

    def __call__(self, gramian: Tensor) -> Tensor:
        from torchjd.aggregation import AlignedMTLWeighting

        return AlignedMTLWeighting(self.preference_or_ones(gramian))(gramian)


@WEIGHTINGS.register("imtl_g")
class IMTLG(Weighting):
    """The sum whose projections on all the gradients' directions are equal. Source: Liu et al. 2021; Quinton and Rey 2024."""

    def __call__(self, gramian: Tensor) -> Tensor:
        from torchjd.aggregation import IMTLGWeighting

        return IMTLGWeighting()(gramian) * len(gramian)


@WEIGHTINGS.register("sdmgrad")
class SDMGrad(Weighting):
    """MGDA drawn towards a preferred direction, its weights carried on from step to step. Source: Xiao et al. 2023.

    The paper multiplies the gradients of two independent batches; a gate sees one, so that its noise biases the weights as MGDA's.

    Args:
        strength: lambda, how strongly the preferred direction draws.
        rate, momentum, iterations: of the inner descent on the simplex.
    """

    takes_preference = True

    def __init__(self, strength: float = 0.3, rate: float = 10.0, momentum: float = 0.5, iterations: int = 20) -> None:
        super().__init__()
        self.strength = strength
        self.rate = rate
        self.momentum = momentum
        self.iterations = int(iterations)

    def __call__(self, gramian: Tensor) -> Tensor:
        from torchjd.aggregation import SDMGradWeighting

        count, rows, kept = len(gramian), self.rows(gramian), self.buffer("weights", gramian, 1.0)
        liked = self.preference_or_ones(gramian) / count
        weighting: Any = SDMGradWeighting(self.rate, self.momentum, self.iterations, self.strength, liked)
        before = kept[rows].to(gramian)
        weighting._w = before / before.sum() if before.sum() > 0 else torch.full_like(before, 1 / count)
        weighting._state_key = (count, gramian.dtype, gramian.device)
        weights = weighting(gramian)
        kept[rows] = weighting._w.double() * kept[rows].sum()
        return weights * count
