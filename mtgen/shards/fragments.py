"""Fragments of tar files: processes write them independently, and shards are made by joining them at any sample."""

import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from mtgen.data.key_hashes import key_hashes
from mtgen.shards.draft import Draft
from mtgen.shards.split_writer import TAR_OPTIONS, ShardSize

COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Fragment:
    """The members of consecutive samples, without the end of an archive.

    Attributes:
        path: its file; it does not exist if there are no samples.
        ends: `[N]` int64, where each sample ends, bytes.
        hashes: `[N]` hashes of the samples' keys.
    """

    path: Path
    ends: NDArray[np.int64]
    hashes: NDArray[np.uint64]


class FragmentWriter:
    """Writes a fragment, whose bytes are those of WebDataset's writer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ends: list[int] = []
        self._keys: list[str] = []
        self._file: IO[bytes] | None = None

    def write(self, key: str, parts: dict[str, bytes]) -> None:
        """Add a sample whose components (suffix -> bytes) are stored unchanged."""
        if self._file is None:
            self._file = self.path.open("wb")
        for suffix in sorted(parts):
            data = parts[suffix]
            member = tarfile.TarInfo(f"{key}.{suffix}")
            member.size, member.mtime, member.mode = len(data), TAR_OPTIONS["mtime"], 0o444
            member.uname, member.gname = TAR_OPTIONS["user"], TAR_OPTIONS["group"]
            header = member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
            self._file.write(header + data + bytes(-len(data) % tarfile.BLOCKSIZE))
        self._ends.append(self._file.tell())
        self._keys.append(key)

    def close(self, durable: bool = False) -> Fragment:
        """Complete the file; with `durable`, its bytes survive a power failure."""
        if self._file is not None:
            with self._file:
                self._file.flush()
                if durable:
                    os.fsync(self._file.fileno())
        return Fragment(self.path, np.array(self._ends, np.int64), key_hashes(self._keys))


@dataclass(frozen=True)
class Piece:
    """Bytes of a fragment that belong to one shard."""

    path: Path
    begin: int
    end: int


def plan_shards(fragments: Iterable[Fragment], full: ShardSize) -> list[list[Piece]]:
    """Cut the samples of fragments, in order, into shards, each of which but the last is full."""
    shards: list[list[Piece]] = [[]]
    size = count = 0
    for fragment in fragments:
        first = begin = 0
        while first < len(fragment.ends):
            if size >= full.bytes and count >= full.samples:
                shards.append([])
                size = count = 0
            by_size = int(np.searchsorted(fragment.ends, begin + full.bytes - size)) + 1
            last = min(max(by_size, first + full.samples - count), len(fragment.ends))
            end = int(fragment.ends[last - 1])
            shards[-1].append(Piece(fragment.path, begin, end))
            size, count = size + end - begin, count + last - first
            first, begin = last, end
    return shards if shards[-1] else []


def join_pieces(draft: Draft, name: str, pieces: Iterable[Piece]) -> None:
    """Write a shard of a draft from its pieces."""
    part = draft.path / f"{name}.part"
    with draft.disk():
        with part.open("wb") as out:
            for piece in pieces:
                with piece.path.open("rb") as file:
                    file.seek(piece.begin)
                    left = piece.end - piece.begin
                    while left and (data := file.read(min(left, COPY_BYTES))):
                        out.write(data)
                        left -= len(data)
            out.write(bytes(2 * tarfile.BLOCKSIZE))
            out.write(bytes(-out.tell() % tarfile.RECORDSIZE))
            out.flush()
            os.fsync(out.fileno())  # a shard's name promises that its bytes survive a power failure
        draft.store(part, name)
