"""Numbers of many steps, summed on the device and read once in a while."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Meter:
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

    def read(self, keys_of_all: list[str]) -> dict[str, float]:
        """Means since the last call, over all workers; collective. A name that no worker has counted is left out.

        Args:
            keys_of_all: every name that may occur, in one order on all workers.
        """
        if not keys_of_all:
            return {}
        zero = torch.zeros(())
        table = torch.stack(
            [torch.stack([self.sums.get(k, zero).float().cpu(), torch.tensor(float(self.counts.get(k, 0)))]) for k in keys_of_all]
        )
        dist.all_reduce(table, group=self.group)
        self.sums, self.counts = {}, {}
        return {k: (row[0] / row[1]).item() for k, row in zip(keys_of_all, table, strict=True) if row[1] > 0}
