"""Interrupt writing a checkpoint at every possible point.

The file operations of writing a checkpoint are counted: open, write, fsync, rename, unlink, rmdir, mkdir. Then each of
them is disturbed in a separate process: the process is killed before it, after it, or in the middle; the power fails
(data that was not synced becomes zeros); the operation fails (disk full, disk error); or a byte of a file is flipped
behind the writer's back. After each interruption the newest good checkpoint must be intact, bit for bit, and the next
one must be writable.
"""

import contextlib
import errno
import functools
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import JsonOption, machine, quick_option, report

from mtgen.checkpointing import checkpoint
from mtgen.checkpointing.checkpoint import METRICS_KEY, latest, save
from mtgen.checkpointing.retention import BestCriterion, Retention
from mtgen.errors import CheckpointError

OPERATIONS = ("open", "write", "fsync", "rename", "unlink", "rmdir", "mkdir")
WAYS = ("killed before", "killed after", "killed within", "power cut", "no room", "disk error", "byte flipped")
NEXT = 300
"""Images of the checkpoint that is interrupted."""


def write(root: Path, images: int, keep: Retention) -> Path:
    """Write a small checkpoint whose values are all `images`."""
    tensors = {name: {"weight": torch.full((64,), float(images))} for name in ("generator", "discriminator", "ema")}
    return save(
        root,
        images,
        tensors,
        {"images": images, METRICS_KEY: {"x": 1 / images}},
        f"name: chaos\nimages: {images}\n",
        keep,
    )


def plain(root: Path) -> Retention:
    """Two checkpoints, of which the older one is removed."""
    for images in (100, 200):
        write(root, images, Retention(2))
    return Retention(2)


def best(root: Path) -> Retention:
    """Three checkpoints, of which the one that is neither the best nor the newest is removed."""
    for images in (100, 150, 200):
        write(root, images, Retention(3))
    return Retention(2, best=BestCriterion("x"))


def littered(root: Path) -> Retention:
    """Two checkpoints, and the leftovers of a killed process: one half written and one half removed."""
    keep = plain(root)
    shutil.copytree(root / f"{200:012d}", root / f".{250:012d}.partial")
    shutil.copytree(root / f"{200:012d}", root / f".{50:012d}.removed")
    return keep


def damaged(root: Path) -> Retention:
    """The run went back to an earlier checkpoint, and replaces a damaged one."""
    keep = plain(root)
    write(root, NEXT, Retention(9))
    (root / f"{NEXT:012d}" / "ema.safetensors").write_bytes(b"")
    return keep


def spaced(root: Path) -> Retention:
    """More were kept before: two are removed at once, and one stays since every n-th is kept."""
    for images in (100, 150, 200):
        write(root, images, Retention(9))
    return Retention(1, every=200)


SITUATIONS: tuple[Callable[[Path], Retention], ...] = (plain, best, littered, damaged, spaced)
"""Functions that prepare a folder of checkpoints, and return which are kept when the next one is written."""


@dataclass
class Fault:
    """Counts the file operations, and disturbs operation number `at`.

    Attributes:
        at: number of the operation; `None`: none is disturbed.
        way: one of `WAYS`.
        done: names of the operations so far.
    """

    at: int | None = None
    way: str = ""
    done: list[str] = field(default_factory=list)
    _paths: dict[int, str] = field(default_factory=dict)
    _unsynced: set[str] = field(default_factory=set)

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        """Route the system calls through this object."""
        originals = {name: getattr(os, name) for name in OPERATIONS}
        for name, call in originals.items():
            setattr(os, name, functools.partial(self._call, name, call))
        try:
            yield
        finally:
            for name, call in originals.items():
                setattr(os, name, call)

    def _call(self, name: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        here = len(self.done) == self.at
        self.done.append(name)
        if here:
            self._before(name, call, arguments)
        result = call(*arguments, **options)
        self._note(name, arguments, result)
        if here and self.way == "byte flipped":
            self._flip()
        if here and self.way == "killed after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def _before(self, name: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        if self.way == "no room":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))
        if self.way == "disk error":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(arguments[0]))
        if self.way == "killed within" and name == "write":
            call(arguments[0], arguments[1][: len(arguments[1]) // 2])
        if self.way == "power cut":
            for path in self._unsynced:
                with contextlib.suppress(FileNotFoundError):
                    Path(path).write_bytes(bytes(Path(path).stat().st_size))
        if self.way in ("killed before", "killed within", "power cut"):
            os.kill(os.getpid(), signal.SIGKILL)

    def _note(self, name: str, arguments: tuple[Any, ...], result: Any) -> None:
        """Keep track of the file of each descriptor, and of the files that are not synced."""
        if name == "open" and arguments[1] & os.O_CREAT:
            self._paths[result] = str(arguments[0])
            self._unsynced.add(str(arguments[0]))
        elif name == "fsync":
            self._unsynced.discard(self._paths.get(arguments[0], ""))

    def _flip(self) -> None:
        """Flip a bit in the middle of the file that was written last, before or after its folder was renamed."""
        path = next((Path(p) for p in reversed(self._paths.values())), None)
        for file in (path, path and path.parent.with_name(f"{NEXT:012d}") / path.name):
            if file is not None and file.is_file() and (content := bytearray(file.read_bytes())):
                content[len(content) // 2] ^= 1
                file.write_bytes(content)


def operations(situation: Callable[[Path], Retention], folder: Path) -> list[str]:
    """The file operations of writing a checkpoint without a fault."""
    fault, keep = Fault(), situation(folder)
    with fault.injected():
        write(folder, NEXT, keep)
    return fault.done


@dataclass(frozen=True)
class End:
    """Outcome of one interruption.

    Attributes:
        how: "killed", "refused" (a clear error), "written", or "silent" (neither).
        loaded: images of the checkpoint that is loaded afterwards.
        named: number of damaged checkpoints that were reported.
        wrong: what is wrong; empty if nothing.
    """

    how: str
    loaded: int | None
    named: int
    wrong: str


def end(situation: Callable[[Path], Retention], folder: Path, at: int, way: str) -> End:
    """Interrupt writing one checkpoint in a child process, and check what is left."""
    keep = situation(folder)
    child = os.fork()
    if child == 0:
        status = 9
        try:
            with Fault(at, way).injected():
                write(folder, NEXT, keep)
            status = 0
        except CheckpointError:
            status = 4
        finally:
            os._exit(status)
    _, code = os.waitpid(child, 0)
    how = "killed" if os.WIFSIGNALED(code) else {0: "written", 4: "refused"}.get(os.WEXITSTATUS(code), "silent")
    messages: list[str] = []
    try:
        found = latest(folder, messages.append)
    except CheckpointError as error:
        return End(how, None, len(messages), str(error))
    return End(how, found and found.images, len(messages), _wrong(how, way, found, folder, keep, messages))


def _wrong(
    how: str, way: str, found: checkpoint.Checkpoint | None, folder: Path, keep: Retention, messages: list[str]
) -> str:
    """What is wrong after an interruption; empty if nothing."""
    if found is None or found.images not in (200, NEXT):
        return f"the newest good checkpoint is {found and found.folder.name}"
    expected = torch.full((64,), float(found.images))
    if any(not torch.equal(found.tensors(name)["weight"], expected) for name in ("generator", "ema")):
        return "its values differ from those that were written"
    if how == "silent" or (how == "written" and found.images != NEXT and not messages):
        return "the loss of a checkpoint was not reported"
    if how == "refused" and found.images != 200 and way not in ("disk error", "no room"):
        return "an intact checkpoint was reported as lost"
    try:
        write(folder, NEXT + 100, keep)
        after = latest(folder, messages.append)
    except CheckpointError as error:
        return f"the next checkpoint cannot be written: {error}"
    return "" if after is not None and after.images == NEXT + 100 else "the next checkpoint is not used"


def cases(situation: Callable[[Path], Retention], done: list[str]) -> Iterator[tuple[int, str]]:
    """Yield every operation with every way to disturb it."""
    for at, name in enumerate(done):
        yield from ((at, way) for way in WAYS if way != "killed within" or name == "write")


def main(
    quick: Annotated[bool, quick_option("one situation instead of all")] = False, json_file: JsonOption = None
) -> None:
    """Interrupt writing a checkpoint at every file operation in every way."""
    here, rows, wrong = machine(), [], []
    torch.set_num_threads(1)  # this process forks
    with tempfile.TemporaryDirectory(prefix="mtgen-chaos-") as temporary:
        for situation in SITUATIONS[:1] if quick else SITUATIONS:
            done = operations(situation, Path(temporary) / situation.__name__)
            counts = {way: Counter[str]() for way in WAYS}
            for at, way in cases(situation, done):
                folder = Path(temporary) / f"{situation.__name__}-{at}-{way.replace(' ', '-')}"
                ended = end(situation, folder, at, way)
                counts[way].update(["ends", ended.how, "new" if ended.loaded == NEXT else "before"])
                counts[way]["unloadable"] += ended.loaded is None
                if ended.wrong:
                    wrong.append(f"{situation.__name__}, operation {at} ({done[at]}), {way}: {ended.wrong}")
                shutil.rmtree(folder, ignore_errors=True)
            rows += [_row(situation.__name__, len(done), way, count) for way, count in counts.items()]
    report("Interrupted checkpoints", here, rows, json_file)
    total, unloadable = (sum(row[key] for row in rows) for key in ("ends", "unloadable"))
    print(f"{total:,} interruptions, {unloadable} unloadable, {len(wrong)} wrong or silent")
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        raise SystemExit(1)


def _row(situation: str, number: int, way: str, count: "Counter[str]") -> dict[str, Any]:
    return {
        "name": situation,
        "operations": number,
        "way": way,
        "ends": count["ends"],
        "killed": count["killed"],
        "refused_with_an_error": count["refused"],
        "written": count["written"],
        "resumes_from_the_new": count["new"],
        "from_the_one_before": count["before"],
        "unloadable": count["unloadable"],
    }


if __name__ == "__main__":
    typer.run(main)
