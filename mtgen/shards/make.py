"""Making data sets by recipes; a recipe is a file in `recipes/` that registers itself."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

from mtgen.config import ConfigSection, check
from mtgen.errors import ConfigError, DataError, summarize_lines
from mtgen.registry import Registry, suggest
from mtgen.schema import DatasetCard, Split
from mtgen.shards.input_names import LeftAlone
from mtgen.shards.listing import Listing, Proposal
from mtgen.shards.shard_maker import Shard, ShardMaker, ShardResult, make_shards, plan
from mtgen.shards.summary import Tally, classes_without_samples, summary
from mtgen.shards.write import Draft, Sample, pattern
from mtgen.utils.shell import shell_command
from mtgen.utils.yaml_text import override
from mtgen.version import __version__

SAMPLES_PER_SHARD = 1000
"""Largest number of samples in a shard."""

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
        notices: what was decided where the input leaves a choice, one line each, for the summary.
        faults: what cannot be used and belongs to no sample, one line each; faults of a sample are raised by `make`.
        left_alone: files that are not used.
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
        self.notices: list[str] = []
        self.faults: list[str] = []
        self.left_alone = LeftAlone()

    @classmethod
    def detect(cls, listing: Listing) -> list[Proposal]:
        """The ways in which this recipe could read a folder or file, for `mtgen shards inspect`; none by default."""
        return []

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


class _Keys:
    """All keys so far, and their samples, numbered over all splits: numbers, because there may be millions."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.splits = recipe.splits
        self.begin = dict(zip(self.splits, accumulate(self.splits.values(), initial=0), strict=False))
        self.sample_of: dict[str, int] = {}

    def add(self, shard: Shard, keys: list[str]) -> Iterator[str]:
        """Add the keys of a shard's samples, in order; yields one line per key that an earlier sample has."""
        for number, key in enumerate(keys, self.begin[shard.split] + shard.first):
            if key and (other := self.sample_of.setdefault(key, number)) != number:
                first, second = self._name(other), self._name(number)
                remedy = "list it once" if first == second else "rename one of them"
                yield f"{second}: its key would be {key!r}, which {first} has; {remedy}"

    def _name(self, number: int) -> str:
        split = next(split for split in reversed(self.splits) if self.begin[split] <= number)
        return self.recipe.origin(split, number - self.begin[split]) or f"{split} {number - self.begin[split]}"


@dataclass(frozen=True)
class Understanding:
    """What a recipe understood of its input, and what it cannot use.

    Attributes:
        card: names of classes and mask classes, and the splits.
        tallies: split -> counts over its samples.
        notices, left_alone: what was decided, and the files that are not used, one line each.
        problems: what cannot be used, one line each.
    """

    card: DatasetCard
    tallies: dict[str, Tally]
    notices: list[str]
    left_alone: list[str]
    problems: list[str]

    def text(self) -> str:
        """The summary, in lines."""
        return summary(self.card, self.tallies, self.notices, self.left_alone)


class BadSamples(DataError):
    """Some samples cannot be stored, or parts of the input not be used; one line for each of the first."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(summarize_lines(problems, MAX_PROBLEMS_SHOWN)))


def preview(
    recipe: str,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    processes: int | None = None,
    **options: Any,
) -> Understanding:
    """Make and check all samples as `make` does, without writing anything; see there."""
    settings = check(_recipe(recipe).Options, options)
    maker = _recipe(recipe)(settings, seed)
    card = _card(maker, recipe, SAMPLES_PER_SHARD, {})
    shards = plan(maker.splits, SAMPLES_PER_SHARD)
    return _gather(maker, card, shards, make_shards(ShardMaker(maker, card, None), shards, processes), progress)[0]


def make(
    recipe: str,
    out: str | Path,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
    processes: int | None = None,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    skip_bad: bool = False,
    understood: Callable[[Understanding], None] | None = None,
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
        skip_bad: leave out what cannot be used; `left_out.txt` in `out` lists it.
        understood: called at the end with what was understood, such as the problems that were left out.
        **options: options of the recipe.

    Raises:
        ConfigError: an unknown recipe, unknown options or invalid values.
        BadSamples: input files cannot be used, and `skip_bad` is not set; one line per problem.
        DataError: `out` is not empty or cannot be written, the input as a whole cannot be used, or keys are repeated.
    """
    kind = _recipe(recipe)
    settings = check(kind.Options, options)
    made_by = {"recipe": recipe, "seed": seed, "options": settings.model_dump(mode="json")}
    maker = kind(settings, seed)
    shards = plan(maker.splits, samples_per_shard)
    card = _card(maker, maker.name or recipe, samples_per_shard, made_by)
    state = {
        "mtgen": __version__,
        "size": samples_per_shard,
        "card": card.model_dump(mode="json"),
        "sources": maker.sources,
        "skip_bad": skip_bad,
    }
    draft = Draft(out, overwrite, json.dumps(state))
    draft.claim()
    try:
        results = make_shards(ShardMaker(maker, card, draft, skip_bad), shards, processes)
        found, repeated = _gather(maker, card, shards, results, progress)
        if repeated or (found.problems and not skip_bad):
            raise BadSamples([*repeated, *found.problems])
        if found.problems:
            _leave_out(found, draft)
        if empty := classes_without_samples(card, found.tallies.values()):
            card = card.model_copy(update={"unused_classes": empty})
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
    if understood:
        understood(found)
    return card


def _leave_out(found: Understanding, draft: Draft) -> None:
    """Correct the card for samples that were left out, and list these in the draft; `DataError` if none is left."""
    if not any(tally.samples for tally in found.tallies.values()):
        raise BadSamples(found.problems)
    for split, tally in found.tallies.items():
        found.card.splits[split].samples = tally.samples
        if not tally.samples:
            draft.remove_split(split)
            del found.card.splits[split]
    draft.list_left_out(found.problems)


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


def _gather(
    recipe: Recipe,
    card: DatasetCard,
    shards: list[Shard],
    results: Iterator[ShardResult],
    progress: Callable[[int, int], None] | None,
) -> tuple[Understanding, list[str]]:
    """Wait for the results of all shards; returns what they amount to, and one line per repeated key."""
    tallies = {split: Tally() for split in recipe.splits}
    found = Understanding(card, tallies, recipe.notices, recipe.left_alone.lines(), list(recipe.faults))
    repeated: list[str] = []
    keys = _Keys(recipe)
    done, total = 0, sum(recipe.splits.values())
    for shard, result in zip(shards, results, strict=True):
        found.problems.extend(result.problems)
        repeated += keys.add(shard, result.keys)
        found.tallies[shard.split].merge(result.tally)
        done += shard.last - shard.first
        if progress:
            progress(done, total)
    return found, repeated
