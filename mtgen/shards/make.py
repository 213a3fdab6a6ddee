"""Make a data set by a recipe: a file in `recipes/` that registers itself."""

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
from typing import Any, ClassVar

import webdataset

from mtgen.config import ConfigSection, check
from mtgen.errors import ConfigError, DataError, summarize_lines
from mtgen.registry import Registry, suggest
from mtgen.schema import DatasetCard, Split
from mtgen.shards.write import TAR_OPTIONS, Draft, Sample, encoded, pattern
from mtgen.utils.shell import shell_command
from mtgen.utils.yaml_text import override
from mtgen.version import __version__

MAX_IN_PROCESS_SAMPLES = 2_000
"""Up to so many samples are made in this process: starting others would take longer."""
MAX_FAULTS_SHOWN = 20
"""So many of the samples that cannot be stored are named; the rest is counted."""
UNNAMED_CLASS_PREFIX = "class "
"""What a mask class that nobody has named is called, before its number."""


def next_steps(folder: Path, card: DatasetCard) -> str:
    """What to do with a data set that was just made; says so where its mask classes have no names yet."""
    counts = ", ".join(f"{split.samples:,} {name}" for name, split in card.splits.items())
    commands = "; ".join(shell_command(f"mtgen shards {what}", folder) for what in ("validate", "view"))
    said = f"made {folder}: {counts}. Next: {commands}"
    if not any(name == f"{UNNAMED_CLASS_PREFIX}{number}" for number, name in enumerate(card.mask_classes)):
        return said
    last = len(card.mask_classes) - 1
    return (
        f"{said}\nThe mask classes are called {UNNAMED_CLASS_PREFIX}0 to {UNNAMED_CLASS_PREFIX}{last}. To name them, make it again with --overwrite and "
        "mask_classes=FILE, a name in each line; one called background is drawn clear"
    )


class Recipe(ABC):
    """What a file in `recipes/` registers: it says how many samples each split has, and makes any of them.

    Attributes:
        name: of the data set; empty: the recipe's. Domains of a mixture are told apart by it.
        sources: what the samples are made from besides the options, as JSON can hold it (files with their sizes and times); an
            interrupted run goes on only where it is the same.
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
        """Sample `number` of a split: a function of the options, the seed and the sources alone."""

    def origin(self, split: str, number: int) -> str:
        """The file that this sample is made from, for messages; empty where there is none."""
        return ""


RECIPES: Registry[type[Recipe]] = Registry("recipe", "mtgen.shards.recipes")


def _recipe(name: str) -> type[Recipe]:
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}; {suggest(name, RECIPES.names())}")
    return RECIPES[name]


def parse_options(recipe: str, assignments: list[str]) -> dict[str, Any]:
    """`["resolution=64", ...]` -> `{"resolution": 64, ...}`, checked against the recipe's options.

    Raises:
        ConfigError: unknown recipe, unknown option, impossible value; one line for each, all at once.
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
class _Made:
    """What became of a shard: the keys of its samples in their order, empty where one has a fault, and the faults, a line each."""

    keys: list[str]
    faults: list[str]


def _shards(splits: dict[str, int], size: int) -> list[_Shard]:
    return [
        _Shard(split, n, i, min(i + size, count))
        for split, count in splits.items()
        for n, i in enumerate(range(0, count, size))
    ]


class _Worker:
    """What makes shards in a process: the recipe comes into it once."""

    def __init__(self, maker: Recipe, draft: Draft, card: DatasetCard) -> None:
        self.maker = maker
        self.draft = draft
        self.card = card

    def __call__(self, shard: _Shard) -> _Made:
        """Make a shard, where a run before has not. All its samples are tried, so that everything wrong with them is said at once."""
        path = self.draft.path / shard.name
        with self.draft.disk():
            if path.is_file():
                with tarfile.open(path) as tar:
                    return _Made(list(dict.fromkeys(name.partition(".")[0] for name in tar.getnames())), [])
            part, made = path.with_suffix(".part"), _Made([], [])
            with part.open("wb") as file:
                with webdataset.TarWriter(file, **TAR_OPTIONS) as tar:
                    for number in range(shard.first, shard.last):
                        try:
                            sample = self.maker.make(shard.split, number)
                            where = (
                                self.maker.origin(shard.split, number)
                                or f"{self.draft.folder}, sample {sample.key!r} of {shard.split}"
                            )
                            content = encoded(where, sample, self.card)
                        except DataError as error:
                            made.faults.append(str(error))
                            made.keys.append("")
                        else:
                            tar.write(content)
                            made.keys.append(sample.key)
                file.flush()
                os.fsync(file.fileno())  # a name without .part promises that the bytes are there, after a power cut too
            if not made.faults:
                part.rename(path)
            return made


class _Keys:
    """Every key so far, and the sample that has it: a number, counted over all splits, since there may be millions."""

    def __init__(self, maker: Recipe) -> None:
        self.maker = maker
        self.splits = maker.splits
        self.begin = dict(zip(self.splits, accumulate(self.splits.values(), initial=0), strict=False))
        self.of: dict[str, int] = {}

    def take(self, shard: _Shard, keys: list[str]) -> Iterator[str]:
        """The keys of a shard's samples, in order -> a line for each that an earlier sample has."""
        for number, key in enumerate(keys, self.begin[shard.split] + shard.first):
            if key and (other := self.of.setdefault(key, number)) != number:
                first, second = self._name(other), self._name(number)
                remedy = "name it once" if first == second else "give one of them another name"
                yield f"{second}: its key would be {key!r}, which {first} has; {remedy}"

    def _name(self, number: int) -> str:
        split = next(split for split in reversed(self.splits) if self.begin[split] <= number)
        return self.maker.origin(split, number - self.begin[split]) or f"{split} {number - self.begin[split]}"


_worker: _Worker


def _start(worker: _Worker) -> None:
    global _worker
    _worker = worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer


def _work(shard: _Shard) -> _Made:
    return _worker(shard)


def _made(worker: _Worker, shards: list[_Shard], processes: int) -> Iterator[_Made]:
    """What became of each shard, in order, as they are made."""
    if processes == 1:
        yield from map(worker, shards)
        return
    context, others = multiprocessing.get_context("forkserver"), set(multiprocessing.active_children())
    with ProcessPoolExecutor(processes, context, _start, (worker,)) as pool:
        try:
            yield from pool.map(_work, shards)
        except BaseException:  # whoever is interrupted does not wait for the shards that are half made
            for process in set(multiprocessing.active_children()) - others:
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
    """Write the data set that `recipe` makes into the folder `out`; the same arguments give the same bytes.

    A run that is interrupted or killed leaves its finished shards in a hidden folder beside `out`, and the same call goes on from them.

    Args:
        recipe: name of a file in `recipes/`.
        out: folder, not there yet or empty.
        seed: another seed, other scenes, or other samples in the test split.
        progress: called with (samples done, samples in all) after each shard.
        overwrite: replace the data set that is in `out`.
        processes: how many make shards at the same time; default: the CPUs that this process has, for small data sets one. A program
            that asks for several keeps its own work under `if __name__ == "__main__":`, as always with multiprocessing.
        samples_per_shard: at most so many samples a tar.
        **options: the recipe's own.

    Raises:
        ConfigError: unknown recipe, unknown option, impossible value.
        DataError: `out` is taken, or cannot be written; or files that samples are made from cannot be used: a line for each, all at once.
    """
    kind = _recipe(recipe)
    settings = check(kind.Options, options)
    made_by = {"recipe": recipe, "seed": seed, "options": settings.model_dump(mode="json")}
    maker = kind(settings, seed)
    shards = _shards(maker.splits, samples_per_shard)
    total, done = sum(maker.splits.values()), 0
    splits = {
        split: Split(samples=n, shards=pattern(split, -(-n // samples_per_shard))) for split, n in maker.splits.items()
    }
    about = {
        "classes": maker.classes,
        "mask_classes": maker.mask_classes,
        "source": maker.source,
        "licence": maker.licence,
    }
    card = DatasetCard.model_validate({"name": maker.name or recipe, "splits": splits, **about, "made_by": made_by})
    state = {
        "mtgen": __version__,
        "size": samples_per_shard,
        "card": card.model_dump(mode="json"),
        "sources": maker.sources,
    }
    draft = Draft(out, overwrite, json.dumps(state))
    if processes is None:
        processes = min(len(os.sched_getaffinity(0)), len(shards)) if total > MAX_IN_PROCESS_SAMPLES else 1
    draft.claim()
    try:
        faults: list[str] = []
        keys = _Keys(maker)
        for shard, made in zip(shards, _made(_Worker(maker, draft, card), shards, processes), strict=True):
            faults += [*made.faults, *keys.take(shard, made.keys)]
            done += shard.last - shard.first
            if progress:
                progress(done, total)
        if faults:
            raise DataError("\n".join(summarize_lines(faults, MAX_FAULTS_SHOWN)))
        draft.finish(card)
    except BrokenProcessPool:
        draft.pause()
        raise DataError(
            f"{draft.folder}: a process that made shards was killed (out of memory?); the same command goes on"
        ) from None
    except DataError:
        draft.abandon()
        raise
    except BaseException:
        draft.pause()
        raise
    return card
