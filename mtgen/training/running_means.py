"""Means of numbers over many steps, summed on the device."""

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

    def names(self) -> list[str]:
        """Names that any worker has counted since the last `read`, in one order on all workers; collective."""
        everyone: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(everyone, list(self.sums), group=self.group)
        return sorted({key for keys in everyone for key in keys})

    def read(self, names: list[str]) -> dict[str, float]:
        """Means since the last call, over all workers; collective. A name that no worker has counted is omitted.

        Args:
            names: every name that may occur, in one order on all workers; see `names`.
        """
        if not names:
            return {}
        zero = torch.zeros(())
        table = torch.stack(
            [
                torch.stack([self.sums.get(name, zero).float().cpu(), torch.tensor(float(self.counts.get(name, 0)))])
                for name in names
            ]
        )
        dist.all_reduce(table, group=self.group)
        self.sums = {}
        self.counts = {}
        return {name: (row[0] / row[1]).item() for name, row in zip(names, table, strict=True) if row[1] > 0}
