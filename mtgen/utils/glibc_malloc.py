"""Settings of glibc's allocator for training: keep freed memory, and use one heap for all threads.

Each step allocates and frees tensors of megabytes. By default glibc returns such memory to the system and requests it
again, and the kernel then zeroes every page: this costs a small network on a CPU 6 to 15 % of its images per second
(docs/performance.md). The additional heaps of threads, in one of which Ray Train's workers train, return it most often.
"""

import ctypes
import os

MAX_HEAP_BLOCK_BYTES = 2**31 - 1
"""Largest block that comes from the heap, and free bytes above which the heap returns memory."""
MALLOC_VARIABLES = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(MAX_HEAP_BLOCK_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(MAX_HEAP_BLOCK_BYTES),
}
"""The settings as environment variables, which glibc reads when a process starts."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""The settings' numbers in glibc's malloc.h."""


def child_environment() -> dict[str, str]:
    """Environment variables with the settings for child processes; values that the user has set take precedence."""
    return {name: os.environ.get(name, value) for name, value in MALLOC_VARIABLES.items()}


def tune_this_process() -> None:
    """Apply the settings to this process; call it before threads start.

    Does nothing if the C library does not have the settings, or if the user has set one of them.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name in os.environ for name in MALLOC_VARIABLES):
        return
    for setting, value in (
        (M_ARENA_MAX, 1),
        (M_MMAP_THRESHOLD, MAX_HEAP_BLOCK_BYTES),
        (M_TRIM_THRESHOLD, MAX_HEAP_BLOCK_BYTES),
    ):
        mallopt(setting, value)
