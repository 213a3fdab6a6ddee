"""Distributing the samples of a data set to new splits, bytes unchanged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtgen.data.dataset_card import read_card, shard_names
from mtgen.data.shard_scan import COMPONENT_BY_SUFFIX, Problem, samples
from mtgen.errors import ConfigError, DataError
from mtgen.schema import DatasetCard
from mtgen.shards.input_files import unit_hash
from mtgen.shards.write import ShardWriter
from mtgen.utils.shell import shell_command


def parse_fractions(assignments: list[str]) -> dict[str, float]:
    """Parse `["train=0.8", "test=0.2"]` -> `{"train": 0.8, "test": 0.2}`.

    Raises:
        ConfigError: a fraction is not positive, or they do not add up to 1.
    """
    fractions: dict[str, float] = {}
    for assignment in assignments:
        name, _, number = assignment.partition("=")
        try:
            fractions[name] = float(number)
        except ValueError:
            raise ConfigError(f"{assignment}: not SPLIT=FRACTION; write for example train=0.9") from None
        if not 0 < fractions[name] <= 1:
            raise ConfigError(f"{assignment}: the fraction has to be above 0 and at most 1")
    if abs(sum(fractions.values()) - 1) > 1e-6:
        raise ConfigError(f"{' '.join(assignments)}: the fractions add up to {sum(fractions.values()):g}; make it 1")
    return fractions


def assign_split(seed: int, key: str, fractions: dict[str, float]) -> str:
    """The split of a sample, a function of seed, key and fractions alone."""
    position = unit_hash(seed, key)
    for name, fraction in fractions.items():
        if (position := position - fraction) < 0:
            return name
    return list(fractions)[-1]


def split(
    folder: str | Path,
    out: str | Path,
    fractions: dict[str, float],
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
) -> DatasetCard:
    """Write the samples of all splits of `folder` to `out`, distributed to new splits by a seeded hash of their keys.

    Args:
        fractions: new split -> its fraction of the samples.
        progress: called with (samples done, samples in total).
        overwrite: replace the data set in `out`.

    Raises:
        DataError: a shard is damaged, two samples have the same key, or `out` is not empty or cannot be written.
    """
    folder = Path(folder)
    card = read_card(folder)
    extra: dict[str, Any] = (card.model_extra or {}) | {"ignore_index": card.ignore_index}
    extra["split_by"] = {"shares": fractions, "seed": seed}
    done, total = 0, sum(part.samples for part in card.splits.values())
    writer = ShardWriter(
        out,
        card.name,
        card.classes,
        card.mask_classes,
        source=card.source,
        licence=card.licence,
        overwrite=overwrite,
        **extra,
    )
    with writer:
        for name in (name for old_split in card.splits for name in shard_names(folder, card, old_split)):
            for item in samples(folder / name, others=True):
                if isinstance(item, Problem):
                    raise DataError(
                        f"{folder}/{item}; `{shell_command('mtgen shards validate', folder)}` lists every problem"
                    )
                if not COMPONENT_BY_SUFFIX.keys() & {part.suffix for part in item.parts.values()}:
                    others = ", ".join(f".{name}" for name in item.parts)
                    raise DataError(
                        f"{folder / name}, sample {item.key!r}: {others} without an image; remove it or add its image"
                    )
                files = {part.suffix: part.data for part in item.parts.values()}
                writer.copy(assign_split(seed, item.key, fractions), item.key, files)
                done += 1
                if progress:
                    progress(done, total)
    return writer.card
