"""Damaged samples of all workers: counted by kind, named once each, and the end of the run when they are too many."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mtgen.errors import DamagedSample, DataError
from mtgen.utils.shell import shell_command

DAMAGE_FILE = "damaged.jsonl"
TOLERATED_DAMAGED_SAMPLES = 10
"""So many damaged samples never stop a run, whatever their share: at its start one in a batch would be too much."""


class DamageLog:
    """What was damaged among the samples that all workers have seen.

    Args:
        folder: the run's; `damaged.jsonl` in it has a line for every damaged sample, written by the first worker.
        limit: largest share of damaged samples among those seen.
        remedy: the data set to mend, for the error.
        group: process group on the CPU.
    """

    def __init__(self, folder: Path, limit: float, remedy: str, group: Any) -> None:
        self.path = folder / DAMAGE_FILE
        self.limit = limit
        self.remedy = remedy
        self.group = group
        self.counts: Counter[str] = Counter()
        self._named = {json.loads(line)["sample"] for line in self._lines()} if dist.get_rank(group) == 0 else set()

    def _lines(self) -> list[str]:
        """Whole lines of what an earlier part of this run has written; half of one, which a killed process left, is cut off."""
        if not self.path.exists():
            return []
        whole, end, _ = self.path.read_bytes().rpartition(b"\n")
        self.path.write_bytes(whole + end)
        return whole.decode().splitlines()

    def count(self, found: list[tuple[int, DamagedSample]], seen: int) -> tuple[list[str], DataError | None]:
        """Take in what this worker found since the last call; collective.

        Args:
            found: positions and what was damaged there.
            seen: samples that all workers have seen since this log began.

        Returns:
            on the first worker a line for each sample that is named for the first time; the error that stops all workers.
        """
        mine = [(position, damage.kind, damage.where, damage.what) for position, damage in found]
        everyone: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(everyone, mine, group=self.group)
        together = sorted(item for worker in everyone for item in worker)
        self.counts.update(kind for _, kind, _, _ in together)
        lines = self._name(together) if dist.get_rank(self.group) == 0 else []
        total = self.counts.total()
        if total < TOLERATED_DAMAGED_SAMPLES or total <= self.limit * seen:
            return lines, None
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in sorted(self.counts.items()))
        return lines, DataError(
            f"{total:,} of {seen:,} samples ({total / seen:.1%}) are damaged ({kinds}), more than data.damage_limit={self.limit:g}; "
            f"they are listed in {self.path}. Mend them (`{shell_command('mtgen shards validate', self.remedy)}` lists every one), "
            "or raise the limit"
        )

    def _name(self, together: list[tuple[int, str, str, str]]) -> list[str]:
        new = []
        for position, kind, where, what in together:
            if where not in self._named:
                self._named.add(where)
                new.append({"sample": where, "kind": kind, "what": what, "position": position})
        if new:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{json.dumps(item)}\n" for item in new)
        return [f"{item['sample']}: {item['what']}; another sample takes its place" for item in new]

    def numbers(self) -> dict[str, float]:
        """`data/damaged_KIND` -> how many so far."""
        return {f"data/damaged_{kind}": float(number) for kind, number in sorted(self.counts.items())}
