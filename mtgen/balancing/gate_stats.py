"""What a gate saw since somebody last asked: norms, weights, cosines, conflicts; summed on the device, without a host sync."""

from typing import Any

import torch
from torch import Tensor


class GateStatistics:
    """Sums over backwards of K tasks' norms and weights and of their pairs' cosines and conflicts."""

    def __init__(self, tasks: list[str]) -> None:
        self.tasks = tasks
        self.sums: Tensor | None = None

    def add(self, products: Tensor, weights: Tensor) -> None:
        """Count one backward in: `[K,K]` Gramian, `[K]` weights. A task that is not finite is counted as such, and nothing else of it."""
        diagonal = products.diagonal()
        bad = ~torch.isfinite(diagonal)
        norms = diagonal.nan_to_num(0, 0, 0).clamp_min(0).sqrt()
        fine = (norms > 0) & ~bad
        pairs = (fine[:, None] & fine).to(products.dtype)
        cosines = (products / (norms[:, None] * norms)).nan_to_num(0, 0, 0).clamp(-1, 1) * pairs
        count = pairs.tril(-1)
        own = torch.stack(
            [pairs.diagonal(), norms * pairs.diagonal(), weights.to(norms) * pairs.diagonal(), bad.to(norms)]
        )
        of_pairs = torch.stack([count, cosines.tril(-1), (cosines < 0).to(norms) * count])
        table = of_pairs.new_zeros(4, *products.shape)
        table[:3] = of_pairs
        table += torch.diag_embed(own)
        self.sums = table if self.sums is None else self.sums.to(table) + table

    def state(self) -> list[Any] | None:
        """The sums since the last report, as plain numbers; `None`: there are none."""
        return None if self.sums is None else self.sums.tolist()

    def load(self, sums: list[Any] | None) -> None:
        """Take back what `state` gave."""
        self.sums = None if sums is None else torch.tensor(sums, dtype=torch.float64)

    def nonfinite(self) -> list[str]:
        """The tasks that had a gradient that was not finite since the last report, the most frequent first."""
        if self.sums is None:
            return []
        counts = self.sums[3].diagonal().tolist()
        return [self.tasks[k] for k in sorted(range(len(counts)), key=lambda k: -counts[k]) if counts[k]]

    def report(self) -> dict[str, float]:
        """Means over the backwards since the last report in which a task, or a pair, had a gradient; begins anew.

        `norm_TASK`, `weight_TASK`, `cosine_A_B`, `conflict_A_B` (share of them with a negative cosine), and `nonfinite_TASK` (a number
        of backwards) where there were any.
        """
        if self.sums is None:
            return {}
        sums, self.sums = self.sums.tolist(), None
        numbers: dict[str, float] = {}
        for a, task in enumerate(self.tasks):
            if sums[3][a][a]:
                numbers[f"nonfinite_{task}"] = sums[3][a][a]
            if count := sums[0][a][a]:
                numbers[f"norm_{task}"], numbers[f"weight_{task}"] = sums[1][a][a] / count, sums[2][a][a] / count
            for b, other in enumerate(self.tasks[:a]):
                if count := sums[0][a][b]:
                    numbers[f"cosine_{other}_{task}"] = sums[1][a][b] / count
                    numbers[f"conflict_{other}_{task}"] = sums[2][a][b] / count
        return numbers
