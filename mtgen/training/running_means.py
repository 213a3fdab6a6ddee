"""Numbers of many steps, summed on the device and read once in a while."""

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
        """Count one value of each name in."""
        for name, value in numbers.items():
            key = f"{prefix}/{name}"
            self.sums[key] = self.sums[key] + value if key in self.sums else value.clone()
            self.counts[key] = self.counts.get(key, 0) + 1

    def state(self) -> list[dict[str, tuple[str, int]]]:
        """What every worker has counted since the last reading, by rank: name -> sum (`float.hex`: it may be NaN) and count; collective."""
        mine = {key: (float(value).hex(), self.counts[key]) for key, value in self.sums.items()}
        everyone: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(everyone, mine, group=self.group)
        return everyone

    def load(self, everyone: list[dict[str, tuple[str, int]]]) -> None:
        """Take back what `state` gave, on any number of workers: each what its own rank had, and those of ranks that are no more."""
        rank, world = dist.get_rank(self.group), dist.get_world_size(self.group)
        for counted in everyone[rank::world]:
            for key, (total, count) in counted.items():
                self.sums[key] = self.sums.get(key, torch.zeros(())) + float.fromhex(total)
                self.counts[key] = self.counts.get(key, 0) + count

    def read(self, keys_of_all: list[str]) -> dict[str, float]:
        """Means since the last call, over all workers; collective. A name that no worker has counted is left out.

        Args:
            keys_of_all: every name that may occur, in one order on all workers.
        """
        if not keys_of_all:
            return {}
        zero = torch.zeros(())
        table = torch.stack(
            [
                torch.stack([self.sums.get(k, zero).float().cpu(), torch.tensor(float(self.counts.get(k, 0)))])
                for k in keys_of_all
            ]
        )
        dist.all_reduce(table, group=self.group)
        self.sums, self.counts = {}, {}
        return {k: (row[0] / row[1]).item() for k, row in zip(keys_of_all, table, strict=True) if row[1] > 0}
