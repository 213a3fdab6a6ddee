"""Distances between sets of features, in chunks, so that the matrix of all pairs is never held."""

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_ROWS = 1024
"""Rows of a chunk."""


def squared_distances(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """`[A,D]`, `[B,D]` -> chunks of the squared Euclidean distances `[n,B]` float64, each with its rows of `a`."""
    center = b.double().mean(0)  # centered, so that the difference of squares below keeps its precision
    other = b.double() - center
    length = other.square().sum(1)
    for begin in range(0, len(a), CHUNK_ROWS):
        rows = a[begin : begin + CHUNK_ROWS].double() - center
        distances = rows.square().sum(1)[:, None] + length - 2 * rows @ other.T
        yield slice(begin, begin + len(rows)), distances.clamp_min_(0)


def nearest(a: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """`[A,D]`, `[B,D]` -> for each row of `a` the distance to the nearest row of `among`, and its index; both `[A]`."""
    found = [chunk.min(1) for _, chunk in squared_distances(a, among)]
    return torch.cat([value for value, _ in found]).sqrt(), torch.cat([index for _, index in found])


def radii(a: Tensor, k: int) -> Tensor:
    """`[A,D]` -> `[A]` float64: squared distance of each row to its k-th nearest neighbor among the others."""
    found = []
    for rows, chunk in squared_distances(a, a):
        # the distance to itself is exactly 0, so that it comes first
        chunk[torch.arange(len(chunk)), torch.arange(rows.start, rows.stop)] = 0
        found.append(chunk.kthvalue(k + 1, dim=1).values)
    return torch.cat(found)
