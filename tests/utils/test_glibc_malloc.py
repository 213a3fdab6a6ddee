"""Freed memory is kept, in this process and in child processes with the settings in their environment."""

import os
import platform
import subprocess
import sys

import pytest

from mtgen.utils.glibc_malloc import MALLOC_VARIABLES, child_environment

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

LOOP = """
import resource, sys, threading
from mtgen.utils.glibc_malloc import tune_this_process
if "keep" in sys.argv:
    tune_this_process()
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


def page_faults(*words: str, **environment: str) -> int:
    """Page faults of a thread that allocates tensors of 64 MB in a loop."""
    plain = {name: value for name, value in os.environ.items() if name not in MALLOC_VARIABLES}
    ended = subprocess.run(
        [sys.executable, "-c", LOOP, *words], env=plain | environment, capture_output=True, text=True, check=True
    )
    return int(ended.stdout)


def test_memory_is_kept_by_a_tuned_process_and_by_one_with_the_variables() -> None:
    plain = page_faults()
    assert plain > 20 * 10_000
    assert page_faults("keep") < plain / 2
    assert page_faults(**MALLOC_VARIABLES) < plain / 2


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert child_environment() == MALLOC_VARIABLES | {"MALLOC_ARENA_MAX": "4"}
    assert page_faults("keep", MALLOC_ARENA_MAX="4") > 20 * 10_000
