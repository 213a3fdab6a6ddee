"""Counter-based random numbers: each is a function of (seed, purpose, position, index) alone, without state.

A sample's latent, crop and noise are therefore the same on any number of workers, after any resume, and on a CPU or a
GPU. The bits come from SplitMix64's finalizer (Steele, Lea and Flood 2014) applied to a Weyl sequence keyed by a hash
of (seed, purpose, position). The numbers are for augmentation and noise, not for cryptography.
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64, the fraction of the golden ratio
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB
_MASK = (1 << 64) - 1

MAX_TOGETHER = 1 << 22
"""Most 64-bit numbers that are made together; their intermediate results take 130 MB."""


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


@lru_cache(maxsize=1024)
def _stream(seed: int, purpose: str) -> int:
    """`_mix` of a seed and a purpose, in Python: a tensor would have to be copied to the device."""
    x = ((seed << 32) + zlib.crc32(purpose.encode())) & _MASK
    x = ((x ^ (x >> 30)) * _MIX1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX2) & _MASK
    x ^= x >> 31
    return x - (1 << 64) if x >> 63 else x


def bits(seed: int, purpose: str, position: Tensor, n: int, device: torch.device | str = "cpu") -> Tensor:
    """`[B]` positions -> `[B,n]` int64 with 64 random bits each; positions on the device need no copy."""
    key = _mix(position.to(device=device, dtype=torch.int64) * _GAMMA + _stream(seed, purpose))
    index = torch.arange(1, n + 1, dtype=torch.int64, device=device) * _GAMMA
    return _mix(key[:, None] + index)


def hash_rows(value: Tensor) -> Tensor:
    """`[B,n]` int64 -> `[B]` int64: equal rows have equal numbers, and others differ.

    Multilinear hashing (Carter and Wegman 1979) with one random factor of 64 bits per column: two rows whose smallest
    difference is below 2^16 collide with a probability below 2^-48.
    """
    row = torch.zeros(1, dtype=torch.int64, device=value.device)
    return (value * bits(0, "hash_rows", row, value.shape[1], value.device)).sum(1)


def first_bits(seed: int, purpose: str, position: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`[B]` positions -> `[B]`: the first of the numbers of `bits`, in NumPy, which is faster for a few thousand."""
    key = position * _UNSIGNED_GAMMA
    key += np.uint64(_stream(seed, purpose) & _MASK)
    _mix_in_place(key)
    key += _UNSIGNED_GAMMA
    _mix_in_place(key)
    return key


_UNSIGNED_GAMMA, _UNSIGNED_MIX1, _UNSIGNED_MIX2 = (np.uint64(value % 2**64) for value in (_GAMMA, _MIX1, _MIX2))


def _mix_in_place(x: NDArray[np.uint64]) -> None:
    x ^= x >> np.uint64(30)
    x *= _UNSIGNED_MIX1
    x ^= x >> np.uint64(27)
    x *= _UNSIGNED_MIX2
    x ^= x >> np.uint64(31)


def uniform(seed: int, purpose: str, position: Tensor, n: int, device: torch.device | str = "cpu") -> Tensor:
    """`[B]` positions -> `[B,n]` float32 in [0, 1)."""
    return _shift(bits(seed, purpose, position, n, device), 40).to(torch.float32) * 2.0**-24


def normal(
    seed: int, purpose: str, position: Tensor, shape: tuple[int, ...], device: torch.device | str = "cpu"
) -> Tensor:
    """`[B]` positions -> `[B,*shape]` float32, standard normal (Box and Muller 1958: two from every 64 bits)."""
    count = math.prod(shape)
    both = torch.cat(_box_muller(bits(seed, purpose, position, (count + 1) // 2, device)), dim=1)
    return both[:, :count].reshape(len(position), *shape)


def _box_muller(random: Tensor) -> tuple[Tensor, Tensor]:
    """Random bits, int64 -> two independent normal numbers for each, of the same shape."""
    radius = ((_shift(random, 40) + 1).to(torch.float32) * 2.0**-24).log_().mul_(-2).sqrt_()
    angle = (random & 0xFFFFFF).to(torch.float32) * (2 * math.pi * 2.0**-24)
    return radius * angle.cos(), radius * angle.sin()


@dataclass(frozen=True)
class Request:
    """Normal numbers for a purpose: `[B]` positions, and the shape of the numbers for each."""

    purpose: str
    position: Tensor
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """64-bit numbers that they take for each position."""
        return (math.prod(self.shape) + 1) // 2


def normals(seed: int, requests: Sequence[Request], device: torch.device) -> list[Tensor]:
    """What `normal` returns for each request; on a GPU together, in a few kernels instead of forty for each."""
    if device.type == "cpu":  # where starting an operation costs less than larger tensors
        return [normal(seed, own.purpose, own.position, own.shape) for own in requests]
    made: list[Tensor] = []
    for group in _groups(requests):
        made += normals_together(seed, group, device)
    return made


def _groups(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Consecutive requests that take at most `MAX_TOGETHER` numbers, or one that takes more."""
    group: list[Request] = []
    size = 0
    for request in requests:
        own = len(request.position) * request.count
        if group and size + own > MAX_TOGETHER:
            yield group
            group, size = [], 0
        group.append(request)
        size += own
    if group:
        yield group


def normals_together(seed: int, requests: Sequence[Request], device: torch.device) -> list[Tensor]:
    """What `normal` returns for each request, all from one tensor of random bits."""
    positions = [request.position.to(device=device, dtype=torch.int64) for request in requests]
    keyed = [own * _GAMMA + _stream(seed, request.purpose) for own, request in zip(positions, requests, strict=True)]
    keys = _mix(torch.cat(keyed)).split([len(own) for own in positions])
    longest = max(request.count for request in requests)
    index = torch.arange(1, longest + 1, dtype=torch.int64, device=device) * _GAMMA
    parts = [(key[:, None] + index[: own.count]).flatten() for key, own in zip(keys, requests, strict=True)]
    sizes = [len(part) for part in parts]
    cosines, sines = (half.split(sizes) for half in _box_muller(_mix(torch.cat(parts))))
    made = []
    for request, cosine, sine in zip(requests, cosines, sines, strict=True):
        rows = (len(request.position), request.count)
        both = torch.cat([cosine.view(rows), sine.view(rows)], dim=1)
        made.append(both[:, : math.prod(request.shape)].reshape(len(both), *request.shape))
    return made
