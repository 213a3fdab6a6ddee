"""Writing files that are on the disk, and verified, when the call returns."""

import errno
import hashlib
import os
from pathlib import Path


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durable(path: Path, content: bytes) -> None:
    """Write a new file, flush it to the disk and verify it by reading it again.

    Uses plain system calls, each of which `benchmarks/chaos_writes.py` interrupts.

    Raises:
        OSError: the file exists or cannot be written, or its content differs from what was written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if file_digest(path) != hashlib.sha256(content).hexdigest():
        raise OSError(errno.EIO, f"{path.name}: reading it back gives different bytes; check the disk")
