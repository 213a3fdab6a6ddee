"""The loader's stream against a pretended asynchronous device, which does nothing before it must."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch

from mtgen.data.device_stream import DeviceStream
from mtgen.data.loader import _Prefetched
from mtgen.schema import Batch


@dataclass(eq=False)
class Stream:
    """Operations that were queued; they run when something waits for them, as late as a device may run them."""

    device: Any = None
    queue: list[Callable[[], None]] = field(default_factory=list)

    def run(self, until: int | None = None) -> None:
        while self.queue and (until is None or until > 0):
            self.queue.pop(0)()
            until = None if until is None else until - 1

    synchronize = run

    def wait_event(self, event: "Event") -> None:
        self.queue.append(event.wait)


class Event:
    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.passed = False

    def record(self, stream: Stream) -> None:
        self.stream = stream
        stream.queue.append(self._pass)

    def _pass(self) -> None:
        self.passed = True

    def wait(self) -> None:
        while not self.passed:
            assert self.stream is not None
            self.stream.run(1)


class Cuda:
    """As much of torch.cuda as the loader uses."""

    Stream, Event = Stream, Event

    def __init__(self) -> None:
        self.default = self.current = Stream()

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def current_stream(self, device: Any) -> Stream:
        return self.default  # of the consumer's thread


class OnDevice:
    """A tensor on the pretended device: one number, and the streams that its memory is kept for."""

    def __init__(self) -> None:
        self.value = -1
        self.used_by: list[Stream] = []

    def record_stream(self, stream: Stream) -> None:
        self.used_by.append(stream)


class Reader:
    """Decodes into one buffer, which it writes again for each batch, and queues a copy out of it, as DALI's user must.

    Args:
        waits: whether it waits for that copy before the buffer is written again.
    """

    def __init__(self, cuda: Cuda, waits: bool) -> None:
        self.cuda, self.waits, self.buffer = cuda, waits, -1

    def read(self, number: Any) -> tuple[Batch, list[Any]]:
        self.buffer = number
        image = OnDevice()
        self.cuda.current.queue.append(lambda: setattr(image, "value", self.buffer))
        if self.waits:
            self.cuda.current.synchronize()
        parts: Any = dict.fromkeys(("label", "mask"), OnDevice())
        position = torch.tensor([number])
        return Batch(position, cast(Any, image), present={}, step_position=position, step_present={}, **parts), []


def consumed(waits: bool) -> list[int]:
    """What a step on the default stream sees of eight batches, of which the loader makes up to three ahead."""
    cuda = Cuda()
    found: list[int] = []
    stream = DeviceStream(torch.device("cuda"), cuda)
    prefetched = _Prefetched(cast(Any, Reader(cuda, waits)), cast(Any, iter(range(8))), 3, stream=stream)
    for batch, _ in prefetched:
        cuda.default.queue.append(lambda image=batch.image: found.append(image.value))  # type: ignore[misc]
    prefetched.close()
    cuda.default.run()
    return found


def test_a_step_sees_its_batch_however_late_the_device_copies() -> None:
    assert consumed(waits=True) == list(range(8))


def test_the_pretended_device_shows_a_buffer_that_is_written_too_early() -> None:
    assert consumed(waits=False) != list(range(8))


def test_the_host_does_not_wait_for_the_loader_or_the_step() -> None:
    cuda = Cuda()
    stream = DeviceStream(torch.device("cuda"), cuda)
    with stream.work():
        batch, _ = Reader(cuda, waits=False).read(5)
    stream.receive(batch, stream.finished())
    assert cast(Any, batch.image).value == -1
    cuda.default.run()
    assert cast(Any, batch.image).value == 5


def test_a_batch_keeps_its_memory_until_the_step_is_done() -> None:
    cuda = Cuda()
    stream = DeviceStream(torch.device("cuda"), cuda)
    with stream.work():
        batch, _ = Reader(cuda, waits=False).read(5)
    stream.receive(batch, stream.finished())
    assert cast(Any, batch.image).used_by == [cuda.default]
    assert all(set(cast(Any, part).used_by) == {cuda.default} for part in (batch.label, batch.mask))


def test_on_a_cpu_there_is_no_stream() -> None:
    stream = DeviceStream(torch.device("cpu"), pytest)
    with stream.work():
        pass
    assert stream.finished() is None and stream.receive(cast(Any, 3), None) == 3
