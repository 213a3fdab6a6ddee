"""DALI pipelines that survive damaged samples: DALI fails on a whole batch, and a pipeline that failed is unusable."""

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

from nvidia.dali.pipeline import Pipeline

from mtgen.errors import DamagedSample, DataError

VALIDATE_HINT = "`mtgen shards validate` lists all such samples"

T = TypeVar("T")


class DamagedBatch(DataError):
    """Samples of a batch that cannot be decoded; the message is that of the first one.

    Args:
        found: row of the batch -> what is wrong with its sample.
    """

    def __init__(self, found: dict[int, DamagedSample]) -> None:
        super().__init__(str(found[min(found)]))
        self.found = found


class Pipelines:
    """A pipeline for batches and one for single samples; each is rebuilt after a failure.

    Args:
        build: builds a pipeline for the given batch size.
        batch: largest number of samples in a batch.

    Attributes:
        rebuilds: how many times the pipeline for batches was rebuilt.
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
        check: Callable[[int], DamagedSample | None],
        name: Callable[[int], str],
    ) -> T:
        """Run the pipeline for batches and return the result of `run`.

        Args:
            rows: rows of the batch that `run` feeds to the pipeline.
            check: runs one row alone and returns what is wrong with it.
            name: returns the name of a row's sample, for errors.

        Raises:
            DamagedBatch: holds every row that is damaged.
            DataError: the samples run one at a time, but not together.
        """
        try:
            return run(self._whole)
        except RuntimeError as error:
            self._whole = self._build(self._batch)
            self.rebuilds += 1
            failure = error
        gc.collect()  # a failed pipeline is in a reference cycle, and several of them hold much memory
        found = {row: damage for row in rows if (damage := check(row))}
        if not found:
            samples = f"{name(rows[0])} and the {len(rows) - 1} after it"
            problem = f"DALI fails on them together, but not one at a time ({dali_reason(failure)})"
            raise DataError(f"{samples}: {problem}; start again, with a smaller batch_size if it persists") from None
        raise DamagedBatch(found)

    def run_one(self, run: Callable[[Pipeline], T]) -> T:
        """Run the pipeline for single samples and return the result of `run`, or raise its error."""
        self._single = self._single or self._build(1)
        try:
            return run(self._single)
        except RuntimeError:
            self._single = None
            raise


def dali_reason(error: RuntimeError) -> str:
    """The reason in a DALI error message, without the pipeline's traceback, in one line."""
    reason = str(error).rpartition("encountered:")[2].partition("Current pipeline")[0].partition("C++ context:")[0]
    return " ".join(reason.split())
