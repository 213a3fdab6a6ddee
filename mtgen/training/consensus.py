"""How the workers of a run agree to go on or to stop: at the start, and before each step."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mtgen.errors import ERROR_BY_STATUS, UserError

T = TypeVar("T")


class Consensus:
    """A few bytes on the CPU before each step, so that no worker waits in a collective for one that has stopped.

    It works on a gloo group of its own: on a GPU it does not touch the stream of the step.
    """

    def __init__(self) -> None:
        self.group: Any = dist.new_group(backend="gloo")

    def any_rank(self, *flags: bool) -> list[bool]:
        """For each flag: whether any worker raises it."""
        raised = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self.group)
        return [bool(flag) for flag in raised]

    def first_error(self, problem: UserError | None) -> UserError | None:
        """The problem of the first worker that has one, on every worker."""
        problems: list[tuple[int, str] | None] = [None] * dist.get_world_size(self.group)
        mine = None if problem is None else (problem.status, str(problem))
        dist.all_gather_object(problems, mine, group=self.group)
        found = next((p for p in problems if p is not None), None)
        return None if found is None else ERROR_BY_STATUS[found[0]](found[1])

    def run_collectively(self, work: Callable[[], T]) -> T:
        """Do on every worker what needs no other worker; what one of them finds wrong is raised on all of them.

        Raises:
            UserError: of the first worker that met one.
        """
        problem: UserError | None = None
        try:
            done = work()
        except UserError as error:
            problem = error
        if found := self.first_error(problem):
            raise found from problem
        return done

    def broadcast(self, value: Any) -> Any:
        """What the first worker gave, a few plain values, on every worker."""
        values = [value]
        dist.broadcast_object_list(values, group_src=0, group=self.group)
        return values[0]
