"""Weightings from TorchJD (Quinton and Rey 2024), scaled to 1 for each of K equal, orthogonal gradients."""

import zlib

import torch
from torch import Tensor

from mtgen.config import WEIGHTINGS


@WEIGHTINGS.register("upgrad")
class UPGrad:
    """Each gradient projected onto the cone of no conflict, then averaged. Source: Quinton and Rey 2024, "Jacobian descent"."""

    def __init__(self) -> None:
        from torchjd.aggregation import UPGradWeighting

        self.weighting = UPGradWeighting()

    def __call__(self, gramian: Tensor) -> Tensor:
        return self.weighting(gramian) * len(gramian)


@WEIGHTINGS.register("mgda")
class MGDA:
    """The shortest convex combination of the gradients. Source: Désidéri 2012; Sener and Koltun 2018."""

    def __init__(self) -> None:
        from torchjd.aggregation import MGDAWeighting

        self.weighting = MGDAWeighting()

    def __call__(self, gramian: Tensor) -> Tensor:
        return self.weighting(gramian) * len(gramian)


@WEIGHTINGS.register("pcgrad")
class PCGrad:
    """Each gradient without its part against the others, then summed. Source: Yu et al. 2020."""

    def __init__(self) -> None:
        from torchjd.aggregation import PCGradWeighting

        self.weighting = PCGradWeighting()

    def __call__(self, gramian: Tensor) -> Tensor:
        """The random order of the projections is drawn from the Gramian, so that all workers and every resumed run choose the same.

        Its entries' exponents are the seed, since their last bits depend on the number of workers.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(torch.frexp(gramian).exponent.cpu().numpy().tobytes()))
            return self.weighting(gramian)
