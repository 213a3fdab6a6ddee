"""Freed memory is kept, in this process and in those that are told so by their environment."""

import os
import platform
import subprocess
import sys

import pytest

from mtgen.utils.glibc_malloc import MALLOC_VARIABLES, child_environment

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="these are settings of glibc's")

LOOP = """
import resource, sys, threading
from mtgen.utils.glibc_malloc import keep
if "keep" in sys.argv:
    keep()
import torch
def loop():
    for _ in range(4):
        torch.ones(16_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16_000_000)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=loop)
thread.start()
thread.join()
"""


def pages_made(*words: str, **environment: str) -> int:
    """Pages that a thread's loop over tensors of 64 MB had to have made."""
    plain = {name: value for name, value in os.environ.items() if name not in MALLOC_VARIABLES}
    ended = subprocess.run(
        [sys.executable, "-c", LOOP, *words], env=plain | environment, capture_output=True, text=True, check=True
    )
    return int(ended.stdout)


def test_memory_is_kept_by_a_process_that_asks_for_it_and_by_one_that_is_told() -> None:
    plain = pages_made()
    assert plain > 20 * 10_000
    assert pages_made("keep") < plain / 2
    assert pages_made(**MALLOC_VARIABLES) < plain / 2


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert child_environment() == MALLOC_VARIABLES | {"MALLOC_ARENA_MAX": "4"}
    assert pages_made("keep", MALLOC_ARENA_MAX="4") > 20 * 10_000
