"""Distances between sets of features, in parts, so that no matrix of all pairs is ever held."""

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_ROWS = 1024
"""Rows and columns of a part."""


def squared_distances(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """`[A,D]`, `[B,D]` -> squared Euclidean distances in parts `[n,B]` float64, and which rows of `a` they are of."""
    center = b.double().mean(0)  # near the origin, so that the difference below keeps its digits
    other = b.double() - center
    length = other.square().sum(1)
    for begin in range(0, len(a), CHUNK_ROWS):
        rows = a[begin : begin + CHUNK_ROWS].double() - center
        distances = rows.square().sum(1)[:, None] + length - 2 * rows @ other.T
        yield slice(begin, begin + len(rows)), distances.clamp_min_(0)


def nearest(a: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """`[A,D]`, `[B,D]` -> for each of A the distance to the nearest of B and which that is, each `[A]`."""
    found = [part.min(1) for _, part in squared_distances(a, among)]
    return torch.cat([value for value, _ in found]).sqrt(), torch.cat([index for _, index in found])


def radii(a: Tensor, k: int) -> Tensor:
    """`[A,D]` -> `[A]` float64: squared distance of each to its k-th nearest neighbor among the others."""
    found = []
    for rows, part in squared_distances(a, a):
        part[torch.arange(len(part)), torch.arange(rows.start, rows.stop)] = (
            0  # itself, exactly, so that it comes first
        )
        found.append(part.kthvalue(k + 1, dim=1).values)
    return torch.cat(found)
