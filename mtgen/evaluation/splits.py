"""The splits that an evaluation reads, and the prompts that it generates images for."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mtgen.config import Config
from mtgen.data.loader import iterate_split
from mtgen.data.mixture import Samples
from mtgen.data.transform_spec import transform_spec_of
from mtgen.models.model import Model
from mtgen.schema import Batch, Prompt

SPLIT_BATCH_SIZE = 100
"""Samples per batch of a split."""
MAX_PROMPT_SAMPLES = 2_000
"""Maximal number of test samples whose labels are used as prompts."""


@dataclass(frozen=True)
class SplitBatches:
    """Batches of a split, preprocessed for the networks, without augmentation; can be iterated any number of times.

    Attributes:
        limit: maximal number of samples, in addition to `data.max_samples`.
        rank, world: this worker's part of the split.
        device: device that decodes, and holds the batches.
        threads: number of threads that decode.
    """

    config: Config
    index: Samples
    limit: int | None = None
    rank: int = 0
    world: int = 1
    device: str = "cpu"
    threads: int = 1

    def __iter__(self) -> Iterator[Batch]:
        return self.since(0)

    def since(self, start: int) -> Iterator[Batch]:
        """See `mtgen.evaluation.streams.SeekableBatches`."""
        limits = [limit for limit in (self.limit, self.config.data.max_samples) if limit is not None]
        return iterate_split(
            self.index,
            transform_spec_of(self.config, self.device, self.threads),
            batch_size=SPLIT_BATCH_SIZE,
            limit=min(limits, default=None),
            rank=self.rank,
            world=self.world,
            start=start,
        )


def evaluation_prompts(model: Model, test: Iterable[Batch]) -> Prompt | None:
    """The prompts that an evaluation generates images for; `None`: cycling through the classes.

    A run that is conditioned on several labels at once generates images for the label combinations of the test samples.
    """
    if "class" in model.conditions or "labels" not in model.conditions:
        return None
    return Prompt.cat([model.prompt_from_batch(batch.to(model.device), "labels") for batch in test])
