"""DALI pipelines that outlive damaged samples: DALI fails on a batch as a whole, and cannot go on with a pipeline that failed."""

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

from nvidia.dali.pipeline import Pipeline

from mtgen.errors import DamagedSample, DataError

VALIDATE_HINT = "`mtgen shards validate` lists all such samples"

T = TypeVar("T")


class DamagedBatch(DataError):
    """Samples of a batch that cannot be decoded; its message is the first one's.

    Args:
        found: row of the batch -> what is wrong with its sample.
    """

    def __init__(self, found: dict[int, DamagedSample]) -> None:
        super().__init__(str(found[min(found)]))
        self.found = found


class Pipelines:
    """A pipeline for batches, and one for samples alone; each is built again after it has failed.

    Args:
        build: a pipeline for so many samples at once.
        batch: largest number of samples at once.

    Attributes:
        rebuilds: how often the one for batches was built again.
    """

    def __init__(self, build: Callable[[int], Pipeline], batch: int) -> None:
        self.rebuilds = 0
        self._build = build
        self._batch = batch
        self._whole = build(batch)
        self._single: Pipeline | None = None

    def run_batch(
        self,
        run: Callable[[Pipeline], T],
        rows: Sequence[int],
        damage: Callable[[int], DamagedSample | None],
        name: Callable[[int], str],
    ) -> T:
        """What `run` makes of a batch.

        Args:
            rows: of the batch that are in it.
            damage: what is wrong with a row, looked at alone.
            name: says which sample a row is, for errors.

        Raises:
            DamagedBatch: holds every row that is damaged.
            DataError: the samples run alone and not together.
        """
        try:
            return run(self._whole)
        except RuntimeError as error:
            self._whole = self._build(self._batch)
            self.rebuilds += 1
            whole = error
        gc.collect()  # the failed pipeline holds itself, and several of them together much memory
        found = {row: wrong for row in rows if (wrong := damage(row))}
        if not found:
            others = f"{name(rows[0])} and the {len(rows) - 1} after it"
            raise DataError(f"{others}: DALI fails on them together, not alone: {dali_reason(whole)}") from None
        raise DamagedBatch(found)

    def run_one(self, run: Callable[[Pipeline], T]) -> T:
        """What `run` makes of one sample; the pipeline for batches is not touched. Raises what `run` does, as often as it is called."""
        self._single = self._single or self._build(1)
        try:
            return run(self._single)
        except RuntimeError:
            self._single = None
            raise


def dali_reason(error: RuntimeError) -> str:
    """What DALI's message says went wrong, without the pipeline's traceback, in one line."""
    return " ".join(
        str(error).rpartition("encountered:")[2].partition("Current pipeline")[0].partition("C++ context:")[0].split()
    )
