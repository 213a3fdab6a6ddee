"""Dealing the samples of a data set to other splits, bytes unchanged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtgen.data.dataset_card import read_card, shard_names
from mtgen.data.shard_scan import COMPONENT_BY_SUFFIX, Problem, samples
from mtgen.errors import ConfigError, DataError
from mtgen.schema import DatasetCard
from mtgen.shards.input_files import share
from mtgen.shards.write import ShardWriter
from mtgen.utils.shell import shell_command


def parse_shares(assignments: list[str]) -> dict[str, float]:
    """`["train=0.8", "test=0.2"]` -> `{"train": 0.8, "test": 0.2}`; `ConfigError` unless they are positive and add up to 1."""
    shares: dict[str, float] = {}
    for assignment in assignments:
        name, _, number = assignment.partition("=")
        try:
            shares[name] = float(number)
        except ValueError:
            raise ConfigError(f"{assignment}: a share is written split=number, such as train=0.9") from None
        if not 0 < shares[name] <= 1:
            raise ConfigError(f"{assignment}: a share is above 0 and at most 1")
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise ConfigError(f"{' '.join(assignments)}: the shares add up to {sum(shares.values()):g}; make it 1")
    return shares


def dealt(seed: int, key: str, shares: dict[str, float]) -> str:
    """The split of a sample: a function of seed, key and shares alone."""
    place = share(seed, key)
    for name, part in shares.items():
        if (place := place - part) < 0:
            return name
    return list(shares)[-1]


def split(
    folder: str | Path,
    out: str | Path,
    shares: dict[str, float],
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
) -> DatasetCard:
    """Write the samples of all splits of `folder` into `out`, dealt to the splits in `shares` by a seeded hash of their keys.

    Raises:
        DataError: a shard is damaged, two samples have one key, or `out` is taken or cannot be written.
    """
    folder = Path(folder)
    card = read_card(folder)
    more: dict[str, Any] = (card.model_extra or {}) | {"ignore_index": card.ignore_index}
    more["split_by"] = {"shares": shares, "seed": seed}
    done, total = 0, sum(part.samples for part in card.splits.values())
    writer = ShardWriter(
        out,
        card.name,
        card.classes,
        card.mask_classes,
        source=card.source,
        licence=card.licence,
        overwrite=overwrite,
        **more,
    )
    with writer:
        for name in (name for old in card.splits for name in shard_names(folder, card, old)):
            for item in samples(folder / name, others=True):
                if isinstance(item, Problem):
                    raise DataError(
                        f"{folder}/{item}; `{shell_command('mtgen shards validate', folder)}` lists every problem"
                    )
                if not COMPONENT_BY_SUFFIX.keys() & {part.suffix for part in item.parts.values()}:
                    others = ", ".join(f".{name}" for name in item.parts)
                    raise DataError(
                        f"{folder / name}, sample {item.key!r}: {others} belongs to no image; take it out, or bring its image back"
                    )
                writer.copy(
                    dealt(seed, item.key, shares), item.key, {part.suffix: part.data for part in item.parts.values()}
                )
                done += 1
                if progress:
                    progress(done, total)
    return writer.card
