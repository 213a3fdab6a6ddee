"""Making data sets by recipes; a recipe is a file in `recipes/` that registers itself."""

import json
import multiprocessing
import os
import signal
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, ClassVar

import webdataset

from mtgen.config import ConfigSection, check
from mtgen.errors import ConfigError, DataError, summarize_lines
from mtgen.registry import Registry, suggest
from mtgen.schema import DatasetCard, Split
from mtgen.shards.split_writer import TAR_OPTIONS
from mtgen.shards.write import Draft, Sample, encoded, pattern
from mtgen.utils.shell import shell_command
from mtgen.utils.yaml_text import override
from mtgen.version import __version__

MAX_IN_PROCESS_SAMPLES = 2_000
"""Smaller data sets are made in this process: that is faster than starting other processes."""

MAX_PROBLEMS_SHOWN = 20
"""Problems that one error lists; the others are counted."""

UNNAMED_CLASS_PREFIX = "class "
"""Prefix of the names of unnamed mask classes, before their number."""


def next_steps(folder: Path, card: DatasetCard) -> str:
    """The message after a data set was made: its size, the next commands, and whether mask classes lack names."""
    counts = ", ".join(f"{split.samples:,} {name}" for name, split in card.splits.items())
    commands = "; ".join(shell_command(f"mtgen shards {what}", folder) for what in ("validate", "view"))
    message = f"made {folder}: {counts}. Next: {commands}"
    if not any(name == f"{UNNAMED_CLASS_PREFIX}{number}" for number, name in enumerate(card.mask_classes)):
        return message
    names = f"{UNNAMED_CLASS_PREFIX}0 to {UNNAMED_CLASS_PREFIX}{len(card.mask_classes) - 1}"
    return (
        f"{message}\nThe mask classes have no names yet ({names}). To name them, run it again with --overwrite and "
        "mask_classes=FILE, one name per line; a class named background is shown transparent"
    )


class Recipe(ABC):
    """A recipe, registered by a file in `recipes/`: it knows the size of each split and makes any of its samples.

    Attributes:
        name: name of the data set, which is its domain in a mixture; empty: the name of the recipe.
        classes, mask_classes, source, licence: see `DatasetCard`.
        sources: everything the samples are made from besides the options, as JSON (files with their sizes and times);
            an interrupted run is only resumed if it is unchanged.
    """

    Options: ClassVar[type[ConfigSection]]
    name: str = ""
    classes: list[str]
    mask_classes: list[str]
    source: str
    licence: str
    sources: Any = None

    def __init__(self, options: Any, seed: int) -> None:
        self.options = options
        self.seed = seed

    @property
    @abstractmethod
    def splits(self) -> dict[str, int]:
        """Split -> number of samples."""

    @abstractmethod
    def make(self, split: str, number: int) -> Sample:
        """Make sample `number` of a split: a function of the options, the seed and the sources alone."""

    def origin(self, split: str, number: int) -> str:
        """The file that a sample is made from, for messages; empty if there is none."""
        return ""


RECIPES: Registry[type[Recipe]] = Registry("recipe", "mtgen.shards.recipes")


def _recipe(name: str) -> type[Recipe]:
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}; {suggest(name, RECIPES.names())}")
    return RECIPES[name]


def parse_options(recipe: str, assignments: list[str]) -> dict[str, Any]:
    """Parse `["resolution=64", ...]` -> `{"resolution": 64, ...}`, validated against the recipe's options.

    Raises:
        ConfigError: an unknown recipe, unknown options or invalid values; one line per problem.
    """
    values: dict[str, Any] = {}
    override(values, assignments)
    return check(_recipe(recipe).Options, values).model_dump(exclude_unset=True)


@dataclass(frozen=True)
class _Shard:
    """One shard to make: samples `first` to `last` (exclusive) of a split."""

    split: str
    number: int
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:06d}.tar"


@dataclass(frozen=True)
class _ShardResult:
    """The result of making a shard.

    Attributes:
        keys: keys of its samples in order; empty for samples with problems.
        problems: one line per sample that cannot be stored.
    """

    keys: list[str]
    problems: list[str]


def _shards(splits: dict[str, int], size: int) -> list[_Shard]:
    return [
        _Shard(split, n, i, min(i + size, count))
        for split, count in splits.items()
        for n, i in enumerate(range(0, count, size))
    ]


class _ShardMaker:
    """Makes shards in one process; it is sent to the process once, with the recipe."""

    def __init__(self, recipe: Recipe, draft: Draft, card: DatasetCard) -> None:
        self.recipe = recipe
        self.draft = draft
        self.card = card

    def __call__(self, shard: _Shard) -> _ShardResult:
        """Make a shard unless an interrupted run has made it; tries all samples, to report all problems at once."""
        path = self.draft.path / shard.name
        with self.draft.disk():
            if path.is_file():
                with tarfile.open(path) as tar:
                    return _ShardResult(list(dict.fromkeys(name.partition(".")[0] for name in tar.getnames())), [])
            part = path.with_suffix(".part")
            with part.open("wb") as file:
                result = self._write_samples(shard, file)
                file.flush()
                os.fsync(file.fileno())  # a name without .part promises that the bytes survive a power failure
            if not result.problems:
                part.rename(path)
            return result

    def _write_samples(self, shard: _Shard, file: IO[bytes]) -> _ShardResult:
        result = _ShardResult([], [])
        with webdataset.TarWriter(file, **TAR_OPTIONS) as tar:
            for number in range(shard.first, shard.last):
                try:
                    sample = self.recipe.make(shard.split, number)
                    default = f"{self.draft.folder}, sample {sample.key!r} of {shard.split}"
                    content = encoded(self.recipe.origin(shard.split, number) or default, sample, self.card)
                except DataError as error:
                    result.problems.append(str(error))
                    result.keys.append("")
                else:
                    tar.write(content)
                    result.keys.append(sample.key)
        return result


class _Keys:
    """All keys so far, and their samples, numbered over all splits: numbers, because there may be millions."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.splits = recipe.splits
        self.begin = dict(zip(self.splits, accumulate(self.splits.values(), initial=0), strict=False))
        self.sample_of: dict[str, int] = {}

    def add(self, shard: _Shard, keys: list[str]) -> Iterator[str]:
        """Add the keys of a shard's samples, in order; yields one line per key that an earlier sample has."""
        for number, key in enumerate(keys, self.begin[shard.split] + shard.first):
            if key and (other := self.sample_of.setdefault(key, number)) != number:
                first, second = self._name(other), self._name(number)
                remedy = "list it once" if first == second else "rename one of them"
                yield f"{second}: its key would be {key!r}, which {first} has; {remedy}"

    def _name(self, number: int) -> str:
        split = next(split for split in reversed(self.splits) if self.begin[split] <= number)
        return self.recipe.origin(split, number - self.begin[split]) or f"{split} {number - self.begin[split]}"


_shard_maker: _ShardMaker
"""The shard maker of a worker process."""


def _init_worker(shard_maker: _ShardMaker) -> None:
    global _shard_maker
    _shard_maker = shard_maker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C


def _make_shard(shard: _Shard) -> _ShardResult:
    return _shard_maker(shard)


def _make_shards(shard_maker: _ShardMaker, shards: list[_Shard], processes: int | None) -> Iterator[_ShardResult]:
    """Make all shards; yields their results in order."""
    if processes is None:
        large = sum(shard.last - shard.first for shard in shards) > MAX_IN_PROCESS_SAMPLES
        processes = min(len(os.sched_getaffinity(0)), len(shards)) if large else 1
    if processes == 1:
        yield from map(shard_maker, shards)
        return
    context, earlier = multiprocessing.get_context("forkserver"), set(multiprocessing.active_children())
    with ProcessPoolExecutor(processes, context, _init_worker, (shard_maker,)) as pool:
        try:
            yield from pool.map(_make_shard, shards)
        except BaseException:  # do not wait for unfinished shards
            for process in set(multiprocessing.active_children()) - earlier:
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def make(
    recipe: str,
    out: str | Path,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
    processes: int | None = None,
    samples_per_shard: int = 1000,
    **options: Any,
) -> DatasetCard:
    """Make a data set by a recipe and write it to the folder `out`; the same arguments give the same bytes.

    If it is interrupted or killed, finished shards stay in a hidden folder beside `out`, and the same call resumes.

    Args:
        recipe: name of a file in `recipes/`.
        out: a folder that does not exist or is empty.
        seed: seed of the scenes, or of the choice of test samples.
        progress: called with (samples done, samples in total) after each shard.
        overwrite: replace the data set in `out`.
        processes: number of processes; default: one per available CPU, one for small data sets. With several, the
            calling program needs `if __name__ == "__main__":`, as always with multiprocessing.
        samples_per_shard: largest number of samples per shard.
        **options: options of the recipe.

    Raises:
        ConfigError: an unknown recipe, unknown options or invalid values.
        DataError: `out` is not empty or cannot be written, or input files cannot be used; one line per problem.
    """
    kind = _recipe(recipe)
    settings = check(kind.Options, options)
    made_by = {"recipe": recipe, "seed": seed, "options": settings.model_dump(mode="json")}
    maker = kind(settings, seed)
    shards = _shards(maker.splits, samples_per_shard)
    card = _card(maker, maker.name or recipe, samples_per_shard, made_by)
    state = {
        "mtgen": __version__,
        "size": samples_per_shard,
        "card": card.model_dump(mode="json"),
        "sources": maker.sources,
    }
    draft = Draft(out, overwrite, json.dumps(state))
    draft.claim()
    try:
        results = _make_shards(_ShardMaker(maker, draft, card), shards, processes)
        if problems := _collect_problems(maker, shards, results, progress):
            raise DataError("\n".join(summarize_lines(problems, MAX_PROBLEMS_SHOWN)))
        draft.finish(card)
    except BrokenProcessPool:
        draft.pause()
        raise DataError(
            f"{draft.folder}: a process that makes shards was killed (out of memory?); run the same command to resume"
        ) from None
    except DataError:
        draft.abandon()
        raise
    except BaseException:
        draft.pause()
        raise
    return card


def _card(recipe: Recipe, name: str, samples_per_shard: int, made_by: dict[str, Any]) -> DatasetCard:
    splits = {
        split: Split(samples=n, shards=pattern(split, -(-n // samples_per_shard))) for split, n in recipe.splits.items()
    }
    return DatasetCard.model_validate(
        {
            "name": name,
            "splits": splits,
            "classes": recipe.classes,
            "mask_classes": recipe.mask_classes,
            "source": recipe.source,
            "licence": recipe.licence,
            "made_by": made_by,
        }
    )


def _collect_problems(
    recipe: Recipe,
    shards: list[_Shard],
    results: Iterator[_ShardResult],
    progress: Callable[[int, int], None] | None,
) -> list[str]:
    """Wait for the results of all shards; returns the problems of their samples and duplicate keys, one line each."""
    problems: list[str] = []
    keys = _Keys(recipe)
    done, total = 0, sum(recipe.splits.values())
    for shard, result in zip(shards, results, strict=True):
        problems += [*result.problems, *keys.add(shard, result.keys)]
        done += shard.last - shard.first
        if progress:
            progress(done, total)
    return problems
