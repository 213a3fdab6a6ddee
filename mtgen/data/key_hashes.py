"""Finding keys that occur more than once among more keys than fit into memory, by 64-bit hashes of them."""

import hashlib
import tempfile
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

MAX_HASHES_IN_MEMORY = 1 << 23
"""More hashes (128 MiB with their numbers) are kept in temporary files."""

MAX_RECENT_KEYS = 1 << 20
"""Keys among which a repetition is found at once, about 60 MB."""

BUCKETS = 256
"""Temporary files, one for each first byte of the hashes, so that each can be sorted alone."""


def key_hashes(keys: Iterable[str]) -> NDArray[np.uint64]:
    """`[N]` 64-bit hashes of keys; two different keys have the same one with a probability of 2**-64."""
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, np.dtype("<u8")).astype(np.uint64)


_PAIR = np.dtype([("hash", np.uint64), ("number", np.int64)])


class DuplicateFinder:
    """Collects hashes, numbered in the order in which they are added, and finds those that were added repeatedly."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.void]] = []
        self._in_memory = 0
        self._count = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def add(self, hashes: NDArray[np.uint64]) -> None:
        """Add `[N]` hashes."""
        pairs = np.empty(len(hashes), _PAIR)
        pairs["hash"], pairs["number"] = hashes, np.arange(self._count, self._count + len(hashes))
        self._parts.append(pairs)
        self._count += len(hashes)
        self._in_memory += len(hashes)
        if self._in_memory > MAX_HASHES_IN_MEMORY:
            self._spill()

    def duplicates(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """`[D]` hashes that were added repeatedly, each as often as it was, sorted; and `[D]` their numbers.

        The numbers of equal hashes ascend.
        """
        if self._folder is None:
            found = _repeated(np.concatenate([np.empty(0, _PAIR), *self._parts]))
        else:
            self._spill()
            found = np.concatenate([_repeated(np.fromfile(self._bucket(k), _PAIR)) for k in range(BUCKETS)])
        return found["hash"], found["number"]

    def close(self) -> None:
        """Remove the temporary files."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _bucket(self, number: int) -> str:
        assert self._folder is not None
        return f"{self._folder.name}/{number:03d}"

    def _spill(self) -> None:
        """Append the hashes in memory to the files of their buckets."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="mtgen-keys-")
            for number in range(BUCKETS):
                open(self._bucket(number), "wb").close()
        if not self._parts:
            return
        pairs = _sorted(np.concatenate(self._parts))
        ends = np.searchsorted(pairs["hash"] >> np.uint64(56), np.arange(BUCKETS + 1, dtype=np.uint64))
        for number in range(BUCKETS):
            if ends[number] < ends[number + 1]:
                with open(self._bucket(number), "ab") as file:
                    pairs[ends[number] : ends[number + 1]].tofile(file)
        self._parts, self._in_memory = [], 0


class KeyRegistry:
    """Finds keys that occur twice while samples are written, without holding all keys.

    A key that one of the last million samples has is found at once, others at the end.
    """

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._finder = DuplicateFinder()

    def add(self, key: str) -> bool:
        """Add a key; returns whether none of the last samples has it."""
        (number,) = key_hashes([key]).tolist()
        if number in self._recent:
            return False
        self._recent.add(number)
        if len(self._recent) >= MAX_RECENT_KEYS:
            self._finder.add(np.fromiter(self._recent, np.uint64, len(self._recent)))
            self._recent.clear()
        return True

    def repeated(self) -> set[int]:
        """Hashes of the keys that were added more than once, although `add` did not notice."""
        self._finder.add(np.fromiter(self._recent, np.uint64, len(self._recent)))
        self._recent.clear()
        with self._finder:
            return set(self._finder.duplicates()[0].tolist())


def _sorted(pairs: NDArray[np.void]) -> NDArray[np.void]:
    """Pairs by hash, those of one hash in their order."""
    return pairs[np.argsort(pairs["hash"], kind="stable")]


def _repeated(pairs: NDArray[np.void]) -> NDArray[np.void]:
    pairs = _sorted(pairs)
    same = pairs["hash"][1:] == pairs["hash"][:-1]
    found = np.zeros(len(pairs), np.bool_)
    found[1:] |= same
    found[:-1] |= same
    return pairs[found]
