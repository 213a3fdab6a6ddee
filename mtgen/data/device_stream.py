"""The loader's own stream on a GPU, so that decoding, copies and training steps overlap.

On torch's default stream, where the steps are, every copy of the loader would wait for all kernels that training has
queued. A batch that was made on another stream needs two things before it can be used: the step's stream waits for an
event that follows the batch's last copy, and the allocator is told that the step's stream uses the batch's memory,
since it would otherwise hand that memory to the loader's next batch while the step still reads it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mtgen.schema import Batch


class DeviceStream:
    """A stream for one thread that makes batches; nothing on a CPU.

    Args:
        device: of the batches.
        cuda: torch's functions for streams; tests give others.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self.cuda = cuda if device.type == "cuda" else None
        self.device = device
        self.stream: Any = None if self.cuda is None else cuda.Stream(device)

    def work(self) -> AbstractContextManager[Any]:
        """Return a context in which the calling thread's operations go to this stream."""
        return nullcontext() if self.cuda is None else self.cuda.stream(self.stream)

    def finished(self) -> Any:
        """Return an event after everything that has been queued on this stream so far; `None` on a CPU."""
        if self.cuda is None:
            return None
        event = self.cuda.Event()
        event.record(self.stream)
        return event

    def receive(self, batch: Batch, finished: Any) -> Batch:
        """Make a batch usable on the calling thread's stream, without letting the host wait.

        Args:
            finished: the event after the batch's last operation.
        """
        if self.cuda is not None:
            current = self.cuda.current_stream(self.device)
            current.wait_event(finished)
            batch.for_each_tensor(_recorder(current))
        return batch


def _recorder(stream: Any) -> Callable[[Tensor], None]:
    return lambda tensor: tensor.record_stream(stream)


def wait_for_copies(device: torch.device) -> None:
    """Wait for the copies that the calling thread has queued out of a buffer that is about to be written again.

    In a loader's thread this waits for the loader's own stream alone.
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
