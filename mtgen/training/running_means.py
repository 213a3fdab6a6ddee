"""Means of numbers over many steps, summed on the device."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class RunningMeans:
    """Means over steps and workers, without a host sync in the step.

    Args:
        group: process group on the CPU over which the means are taken.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self._names: list[str] = []  # in one order on all workers

    def add(self, prefix: str, numbers: dict[str, Tensor]) -> None:
        """Add one value to each mean `PREFIX/NAME`."""
        for name, value in numbers.items():
            key = f"{prefix}/{name}"
            self.sums[key] = self.sums[key] + value if key in self.sums else value.clone()
            self.counts[key] = self.counts.get(key, 0) + 1

    def state(self) -> list[dict[str, tuple[str, int]]]:
        """Sums and counts of every worker since the last `read`, by rank: name -> (sum, count); collective.

        A sum is written by `float.hex`, since it may be NaN, which JSON does not have.
        """
        mine = {key: (float(value).hex(), self.counts[key]) for key, value in self.sums.items()}
        everyone: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(everyone, mine, group=self.group)
        return everyone

    def load(self, everyone: list[dict[str, tuple[str, int]]]) -> None:
        """Restore what `state` returned, on any number of workers; the sums of additional ranks are distributed."""
        rank, world = dist.get_rank(self.group), dist.get_world_size(self.group)
        for counted in everyone[rank::world]:
            for key, (total, count) in counted.items():
                self.sums[key] = self.sums.get(key, torch.zeros(())) + float.fromhex(total)
                self.counts[key] = self.counts.get(key, 0) + count

    def read(self, own: Sequence[float] = ()) -> tuple[dict[str, float], list[list[float]]]:
        """Means since the last call over all workers, and `own` of each worker, by rank; collective.

        One all-reduce; two more messages if a worker has counted a name for the first time. A name that no worker has
        counted since the last call is omitted.
        """
        rank, world = dist.get_rank(self.group), dist.get_world_size(self.group)
        workers = torch.zeros(world, len(own) + 1, dtype=torch.float64)
        workers[rank] = torch.tensor([*own, float(not self.sums.keys() <= set(self._names))])
        table = self._table(self._names)
        packed = torch.cat([table.flatten(), workers.flatten()])
        dist.all_reduce(packed, group=self.group)
        table, workers = packed[: table.numel()].view_as(table), packed[table.numel() :].view_as(workers)
        if workers[:, -1].any():
            new = self._new_names()
            more = self._table(new)
            dist.all_reduce(more, group=self.group)
            self._names, table = self._names + new, torch.cat([table, more])
        self.sums = {}
        self.counts = {}
        means = {name: total / count for name, (total, count) in zip(self._names, table.tolist(), strict=True) if count}
        return means, workers[:, :-1].tolist()

    def _new_names(self) -> list[str]:
        """Names that a worker has counted and not all know, in one order on all workers; collective."""
        everyone: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(everyone, list(self.sums), group=self.group)
        return sorted({key for keys in everyone for key in keys}.difference(self._names))

    def _table(self, names: list[str]) -> Tensor:
        """`[n,2]` this worker's sums and counts, by one copy from the device."""
        device = next((value.device for value in self.sums.values() if value.is_cuda), torch.device("cpu"))
        zero = torch.zeros((), device=device)
        sums = [self.sums.get(name, zero).to(device, torch.float64) for name in names]
        counts = torch.tensor([self.counts.get(name, 0) for name in names], dtype=torch.float64)
        return torch.stack([torch.stack(sums).cpu() if sums else counts, counts], 1)
