"""The interface of collectors, whose state an interrupted evaluation resumes with."""

from typing import Any, Protocol

State = dict[str, Any]
"""Names -> tensors, numbers, text, and lists and dictionaries of these; see `mtgen.evaluation.serialization`."""


class Collector(Protocol):
    """Accumulates a stream."""

    def state_dict(self) -> State:
        """Everything that was accumulated."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` of an equally constructed collector returned."""
        ...
