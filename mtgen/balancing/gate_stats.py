"""Statistics of a gate since the last report: norms, weights, cosines, conflicts. The sums stay on the device.

The sums are one `[4,K,K]` table, so that a backward adds one tensor and a checkpoint keeps one array. The diagonal is
about tasks, the lower triangle about pairs (row a, column b < a), and the upper triangle is 0:

| slot | diagonal: task a | lower triangle: tasks a and b |
|-|-|-|
| COUNT | backwards in which a has a finite gradient | backwards in which both have one |
| NORM_OR_COSINE | sum of the gradient's norms | sum of the cosines |
| WEIGHT_OR_CONFLICT | sum of the weights | backwards with a negative cosine |
| NONFINITE | backwards in which a's gradient is not finite | 0 |
"""

from typing import Any

import torch
from torch import Tensor

COUNT, NORM_OR_COSINE, WEIGHT_OR_CONFLICT, NONFINITE = range(4)
"""Slots of the table; their order is that of checkpoints."""


class GateStatistics:
    """Sums over backwards of K tasks' norms and weights, and of their pairs' cosines and conflicts."""

    def __init__(self, tasks: list[str]) -> None:
        self.tasks = tasks
        self.sums: Tensor | None = None

    def add(self, gramian: Tensor, weights: Tensor) -> None:
        """Add one backward: `[K,K]` Gramian, `[K]` weights. A gradient that is not finite adds to NONFINITE alone."""
        diagonal = gramian.diagonal()
        nonfinite = ~torch.isfinite(diagonal)
        norms = diagonal.nan_to_num(0, 0, 0).clamp_min(0).sqrt()
        counted = (norms > 0) & ~nonfinite
        both = (counted[:, None] & counted).to(gramian.dtype)
        cosines = (gramian / (norms[:, None] * norms)).nan_to_num(0, 0, 0).clamp(-1, 1) * both
        task, pair = both.diagonal(), both.tril(-1)
        of_tasks = torch.stack([task, norms * task, weights.to(norms) * task, nonfinite.to(norms)])
        of_pairs = torch.stack([pair, cosines.tril(-1), (cosines < 0).to(norms) * pair])
        table = of_pairs.new_zeros(4, *gramian.shape)
        table[:NONFINITE] = of_pairs
        table += torch.diag_embed(of_tasks)
        self.sums = table if self.sums is None else self.sums.to(table) + table

    def state(self) -> list[Any] | None:
        """Return the sums since the last report as nested lists; `None` if there are none."""
        return None if self.sums is None else self.sums.tolist()

    def load(self, sums: list[Any] | None) -> None:
        """Restore what `state` returned."""
        self.sums = None if sums is None else torch.tensor(sums, dtype=torch.float64)

    def nonfinite(self) -> list[str]:
        """Return the tasks that had a non-finite gradient since the last report, the most frequent first."""
        if self.sums is None:
            return []
        counts = self.sums[NONFINITE].diagonal().tolist()
        return [self.tasks[k] for k in sorted(range(len(counts)), key=lambda k: -counts[k]) if counts[k]]

    def report(self) -> dict[str, float]:
        """Return means over the backwards in which a task, or a pair, had a gradient, and start again from zero.

        Names: `norm_TASK`, `weight_TASK`, `cosine_A_B`, `conflict_A_B` (fraction of backwards with a negative cosine),
        and, where there were any, `nonfinite_TASK` (number of backwards).
        """
        if self.sums is None:
            return {}
        sums, self.sums = self.sums.tolist(), None
        numbers: dict[str, float] = {}
        for a, task in enumerate(self.tasks):
            if sums[NONFINITE][a][a]:
                numbers[f"nonfinite_{task}"] = sums[NONFINITE][a][a]
            if count := sums[COUNT][a][a]:
                numbers[f"norm_{task}"] = sums[NORM_OR_COSINE][a][a] / count
                numbers[f"weight_{task}"] = sums[WEIGHT_OR_CONFLICT][a][a] / count
            for b, other in enumerate(self.tasks[:a]):
                if count := sums[COUNT][a][b]:
                    numbers[f"cosine_{other}_{task}"] = sums[NORM_OR_COSINE][a][b] / count
                    numbers[f"conflict_{other}_{task}"] = sums[WEIGHT_OR_CONFLICT][a][b] / count
        return numbers
