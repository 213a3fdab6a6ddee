"""How the C library's allocator treats a training: freed memory is kept, and all threads share one heap.

A step's tensors come and go by the megabyte. By default glibc gives such memory back to the system and asks for it again, and every
page of it is then made anew, filled with zeros: 6 to 15 % of the images a second of a small network on a CPU (docs/performance.md).
Threads' heaps of their own, in one of which Ray Train's workers train, give it back most eagerly of all.
"""

import ctypes
import os

MAX_HEAP_BLOCK_BYTES = 2**31 - 1
"""Bytes: blocks up to this come from the heap, and the heap gives nothing back until so much of it is free."""
MALLOC_VARIABLES = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(MAX_HEAP_BLOCK_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(MAX_HEAP_BLOCK_BYTES),
}
"""The settings for a process that is yet to start: glibc reads them from its environment."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Numbers of the settings in glibc's malloc.h."""


def child_environment() -> dict[str, str]:
    """The settings for processes to start, but for those that the user has made."""
    return {name: os.environ.get(name, value) for name, value in MALLOC_VARIABLES.items()}


def tune_this_process() -> None:
    """The same for this process, before it has threads; nothing where the C library has no such settings, or the user has made some."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name in os.environ for name in MALLOC_VARIABLES):
        return
    for setting, value in (
        (M_ARENA_MAX, 1),
        (M_MMAP_THRESHOLD, MAX_HEAP_BLOCK_BYTES),
        (M_TRIM_THRESHOLD, MAX_HEAP_BLOCK_BYTES),
    ):
        mallopt(setting, value)
