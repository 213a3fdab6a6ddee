"""The stacks of a worker's threads, also while it is stuck in C code: written by a signal handler, read on its node."""

import faulthandler
import os
import re
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

STACK_SIGNAL = signal.SIGUSR2
STACK_SECONDS = 5.0
"""Seconds in which a process writes its stacks; it needs milliseconds unless the system swaps."""
_FILE_NAME = "mtgen-stacks"
_QUIET_SECONDS = 0.1  # without a further byte, the stacks are complete
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)$')


class StackRecorder:
    """Lets other processes of this system and user ask for the stacks of this one, by a signal.

    The handler is C code (`faulthandler`): it needs neither the GIL nor the main thread. It writes to a file in memory,
    so a slow file system does not matter and nothing is left behind.
    """

    def __init__(self) -> None:
        self.descriptor = -1

    def start(self) -> None:
        """Write the stacks whenever `STACK_SIGNAL` comes."""
        self.descriptor = os.memfd_create(_FILE_NAME)
        faulthandler.register(STACK_SIGNAL, file=self.descriptor, all_threads=True)

    def stop(self) -> None:
        """Restore what the signal did before."""
        faulthandler.unregister(STACK_SIGNAL)
        os.close(self.descriptor)


def read_stacks(processes: Sequence[tuple[int, float, int]]) -> list[str]:
    """The stacks of processes of this system, or why there are none.

    Args:
        processes: process, time at which it was started, and descriptor of its `StackRecorder`.
    """
    if not processes:
        return []
    with ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(lambda process: _read(*process), processes))


def _read(pid: int, born: float, descriptor: int) -> str:
    file = Path(f"/proc/{pid}/fd/{descriptor}")
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - born) > 1 or _FILE_NAME not in os.readlink(file):  # the signal would kill it
            return "no stacks: the process has ended"
        if process.status() == psutil.STATUS_STOPPED:
            return f"no stacks: the process is in the state {psutil.STATUS_STOPPED!r}"
        before = file.stat().st_size
        os.kill(pid, STACK_SIGNAL)
        text = _wait(file, before)
        return text or f"no stacks within {STACK_SECONDS:g} s: the process is in the state {process.status()!r}"
    except (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
        return "no stacks: the process has ended"


def _wait(file: Path, before: int) -> str:
    """What a process writes to the file from the byte `before` on; "" if that is nothing."""
    deadline, size = time.monotonic() + STACK_SECONDS, before
    while time.monotonic() < deadline:
        time.sleep(_QUIET_SECONDS)
        if size == (size := file.stat().st_size) > before:
            break
    with file.open("rb") as opened:
        opened.seek(before)
        return opened.read().decode("utf-8", "replace")


def where(stacks: str, thread: int) -> str:
    """Where a thread stands: its innermost call, and the innermost one of mtgen below it; "" if the text has neither.

    Args:
        stacks: of a process, as `faulthandler` writes them.
        thread: as `threading.get_ident` names it.
    """
    _, _, rest = stacks.partition(f"hread 0x{thread:016x} (most recent call first):\n")
    frames = []
    for line in rest.splitlines():
        if (frame := _FRAME.match(line)) is None:
            break
        frames.append(frame)
    own = next((frame for frame in frames if "/mtgen/" in frame["file"]), None)
    places = [_place(frame) for frame in dict.fromkeys(filter(None, [frames[0] if frames else None, own]))]
    return ", called by ".join(places)


def _place(frame: re.Match[str]) -> str:
    return f"`{frame['function']}` ({'/'.join(frame['file'].split('/')[-3:])}:{frame['line']})"
