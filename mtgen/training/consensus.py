"""How the workers of a run agree, where all of them ask: during setup, at an interrupt, and at the end."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mtgen.errors import ERROR_BY_STATUS, UserError

T = TypeVar("T")

GROUP_TIMEOUT = timedelta(minutes=30)
"""Longest difference between workers that is not explained by their data; the default of torch."""


class Consensus:
    """Exchanges a few bytes between the CPUs, so that no worker waits in a collective for one that has stopped.

    It has its own gloo group: on a GPU it does not touch the stream of the step.

    Args:
        patience: seconds that one worker may wait for its data while the others wait for it.
    """

    def __init__(self, patience: float = 0.0) -> None:
        limit = GROUP_TIMEOUT + timedelta(seconds=patience)
        self.group: Any = dist.new_group(backend="gloo", timeout=limit)

    def any_rank(self, *flags: bool) -> list[bool]:
        """For each flag, whether any worker raises it."""
        raised = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self.group)
        return [bool(flag) for flag in raised]

    def first_error(self, problem: UserError | None) -> UserError | None:
        """The error of the lowest rank that has one, on every worker; `None` if none has."""
        problems = self.gather(None if problem is None else (problem.status, str(problem)))
        found = next((p for p in problems if p is not None), None)
        return None if found is None else ERROR_BY_STATUS[found[0]](found[1])

    def run_collectively(self, work: Callable[[], T]) -> T:
        """Run `work` on every worker; an error of one is raised on all. `work` itself must not be collective.

        Raises:
            UserError: of the lowest rank that met one.
        """
        problem: UserError | None = None
        try:
            done = work()
        except UserError as error:
            problem = error
        if found := self.first_error(problem):
            raise found from problem
        return done

    def gather(self, value: Any) -> list[Any]:
        """The values of all workers, by rank, on every worker; a few plain values."""
        values: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(values, value, group=self.group)
        return values

    def broadcast(self, value: Any) -> Any:
        """The value of the first worker, on every worker; a few plain values."""
        values = [value]
        dist.broadcast_object_list(values, group_src=0, group=self.group)
        return values[0]
