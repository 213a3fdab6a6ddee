"""Damaged samples of all workers: counted by kind, logged once each, and an error when there are too many."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mtgen.errors import DamagedSample, DataError
from mtgen.utils.shell import shell_command

DAMAGE_FILE = "damaged.jsonl"
TOLERATED_DAMAGED_SAMPLES = 10
"""Fewer damaged samples never stop a run, whatever their fraction: at its start, one in a batch would be too many."""


class DamageLog:
    """Damaged samples among those that all workers have seen.

    Args:
        folder: the run's; its `damaged.jsonl` has one line per damaged sample, written by the first worker.
        limit: maximum fraction of damaged samples among those seen.
        data: folder of the data set, for the remedy in the error.
        group: process group on the CPU.
    """

    def __init__(self, folder: Path, limit: float, data: str, group: Any) -> None:
        self.path = folder / DAMAGE_FILE
        self.limit = limit
        self.data = data
        self.group = group
        self.counts: Counter[str] = Counter()
        self._logged = {json.loads(line)["sample"] for line in self._lines()} if dist.get_rank(group) == 0 else set()

    def _lines(self) -> list[str]:
        """Lines that earlier parts of this run have written; removes an incomplete last one, of a killed process."""
        if not self.path.exists():
            return []
        complete, end, _ = self.path.read_bytes().rpartition(b"\n")
        self.path.write_bytes(complete + end)
        return complete.decode().splitlines()

    def count(self, found: list[tuple[int, DamagedSample]], seen: int) -> tuple[list[str], DataError | None]:
        """Count what this worker has found since the last call; collective.

        Args:
            found: positions, and what is damaged there.
            seen: samples that all workers have seen since this log was opened.

        Returns:
            on the first worker, one message per sample that is new; and the error that stops all workers, if any.
        """
        mine = [(position, damage.kind, damage.where, damage.what) for position, damage in found]
        everyone: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(everyone, mine, group=self.group)
        together = sorted(item for worker in everyone for item in worker)
        self.counts.update(kind for _, kind, _, _ in together)
        lines = self._log_new(together) if dist.get_rank(self.group) == 0 else []
        return lines, self._error(seen)

    @property
    def lines(self) -> int:
        """How many samples are in `damaged.jsonl`; 0 on all workers but the first."""
        return len(self._logged)

    def numbers(self) -> dict[str, float]:
        """`data/damaged_KIND` -> how many so far."""
        return {f"data/damaged_{kind}": float(number) for kind, number in sorted(self.counts.items())}

    def _error(self, seen: int) -> DataError | None:
        """The error of a run with too many damaged samples; the same on all workers."""
        total = self.counts.total()
        if total < TOLERATED_DAMAGED_SAMPLES or total <= self.limit * seen:
            return None
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in sorted(self.counts.items()))
        return DataError(
            f"{total:,} of {seen:,} samples ({total / seen:.1%}) are damaged ({kinds}), more than "
            f"data.damage_limit={self.limit:g}; they are listed in {self.path}. Fix them "
            f"(`{shell_command('mtgen shards validate', self.data)}` lists all of them), or raise the limit"
        )

    def _log_new(self, together: list[tuple[int, str, str, str]]) -> list[str]:
        """Write the samples that are not logged yet, and return one message for each."""
        new = []
        for position, kind, where, what in together:
            if where not in self._logged:
                self._logged.add(where)
                new.append({"sample": where, "kind": kind, "what": what, "position": position})
        if new:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{json.dumps(item)}\n" for item in new)
        return [f"{item['sample']}: {item['what']}; replaced by another sample" for item in new]
