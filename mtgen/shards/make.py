"""Making data sets by recipes; a recipe is a file in `recipes/` that registers itself."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtgen.config import check, find_entry
from mtgen.data.key_hashes import DuplicateFinder
from mtgen.errors import DataError, Unreachable, summarize_lines
from mtgen.schema import DatasetCard, Split
from mtgen.shards.draft import Draft, pattern
from mtgen.shards.open_draft import open_draft
from mtgen.shards.recipe import MAX_PROBLEMS_SHOWN, RECIPES, UNNAMED_CLASS_PREFIX, Recipe
from mtgen.shards.shard_maker import RangeMaker, RangeResult, SampleRange, ShardJoiner, make_ranges, plan_ranges
from mtgen.shards.split_writer import MIN_SAMPLES_PER_SHARD, ShardSize
from mtgen.shards.summary import Tally, classes_without_samples, summary
from mtgen.storage.source import is_url
from mtgen.utils.shell import shell_command
from mtgen.version import __version__


def next_steps(location: str | Path, card: DatasetCard) -> str:
    """The message after a data set was made: its size, the next commands, and whether mask classes lack names."""
    counts = ", ".join(f"{split.samples:,} {name}" for name, split in card.splits.items())
    following = ("view",) if is_url(str(location)) else ("validate", "view")
    commands = "; ".join(shell_command(f"mtgen shards {what}", location) for what in following)
    message = f"made {location}: {counts}. Next: {commands}"
    if not any(name == f"{UNNAMED_CLASS_PREFIX}{number}" for number, name in enumerate(card.mask_classes)):
        return message
    names = f"{UNNAMED_CLASS_PREFIX}0 to {UNNAMED_CLASS_PREFIX}{len(card.mask_classes) - 1}"
    return (
        f"{message}\nThe mask classes have no names yet ({names}). To name them, run it again with --overwrite and "
        "mask_classes=FILE, one name per line; a class named background is shown transparent"
    )


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
    kind = find_entry(RECIPES, recipe)
    maker = kind(check(kind.Options, options), seed)
    card = _card(maker, recipe, {})
    ranges = plan_ranges(maker.splits, MIN_SAMPLES_PER_SHARD)
    results = make_ranges(RangeMaker(maker, card, None), ranges, processes)
    return _gather(maker, card, ranges, results, progress)[0]


def make(
    recipe: str,
    out: str | Path,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
    processes: int | None = None,
    samples_per_shard: int | None = None,
    skip_bad: bool = False,
    understood: Callable[[Understanding], None] | None = None,
    **options: Any,
) -> DatasetCard:
    """Make a data set by a recipe and write it to `out`; the same arguments give the same bytes.

    If it is interrupted or killed, what is finished stays in a hidden folder beside `out`, or for a store in
    `$MTGEN_CACHE`, and the same call resumes. In a store, every shard is uploaded when it is full, and `dataset.json`
    and the index at the end.

    Args:
        recipe: name of a file in `recipes/`.
        out: a folder that does not exist or is empty, or the URL of one in a store.
        seed: seed of the scenes, or of the choice of test samples.
        progress: called with (samples done, samples in total) after each range of samples.
        overwrite: replace the data set in the folder `out`.
        processes: number of processes; default: one per available CPU, one for small data sets. With several, the
            calling program needs `if __name__ == "__main__":`, as always with multiprocessing.
        samples_per_shard: number of samples per shard; default: shards of 256 MB, and of 1,000 samples at least.
        skip_bad: leave out what cannot be used; `left_out.txt` in `out` lists it.
        understood: called at the end with what was understood, such as the problems that were left out.
        **options: options of the recipe.

    Raises:
        ConfigError: an unknown recipe, unknown options or invalid values.
        BadSamples: input files cannot be used, and `skip_bad` is not set; one line per problem.
        DataError: `out` is not empty or cannot be written, the input as a whole cannot be used, or keys are repeated.
    """
    kind = find_entry(RECIPES, recipe)
    settings = check(kind.Options, options)
    made_by = {"recipe": recipe, "seed": seed, "options": settings.model_dump(mode="json")}
    maker = kind(settings, seed)
    full = ShardSize.of(samples_per_shard)
    card = _card(maker, maker.name or recipe, made_by)
    draft = open_draft(out, card, overwrite, _state(maker, card, full, skip_bad))
    draft.claim()
    try:
        found = _make(maker, card, draft, full, skip_bad, processes, progress)
        draft.finish(found.card)
    except BrokenProcessPool:
        draft.pause()
        raise DataError(
            f"{draft.location}: a process that makes shards was killed (out of memory?); run the same command to resume"
        ) from None
    except Unreachable:
        draft.pause()
        raise
    except DataError:
        draft.abandon()
        raise
    except BaseException:
        draft.pause()
        raise
    if understood:
        understood(found)
    return found.card


def _state(recipe: Recipe, card: DatasetCard, full: ShardSize, skip_bad: bool) -> str:
    """Everything that the shards are made from, as JSON."""
    state = {"mtgen": __version__, "full": asdict(full), "card": card.model_dump(mode="json")}
    return json.dumps(state | {"sources": recipe.sources, "splits": recipe.splits, "skip_bad": skip_bad})


def _make(
    recipe: Recipe,
    card: DatasetCard,
    draft: Draft,
    full: ShardSize,
    skip_bad: bool,
    processes: int | None,
    progress: Callable[[int, int], None] | None,
) -> Understanding:
    """Make all shards in a draft, and list what is left out; returns what was understood, with the final card."""
    joiner = ShardJoiner(draft, full)
    ranges = plan_ranges(recipe.splits, full.samples)
    results = make_ranges(RangeMaker(recipe, card, draft, skip_bad), ranges, processes, joiner)
    found, repeated = _gather(recipe, card, ranges, results, progress)
    if repeated or (found.problems and not skip_bad):
        raise BadSamples([*repeated, *found.problems])
    if found.problems and not joiner.counts:
        raise BadSamples(found.problems)
    if found.problems:
        draft.list_left_out(found.problems)
    splits = {
        split: Split(samples=found.tallies[split].samples, shards=pattern(split, count))
        for split, count in joiner.counts.items()
    }
    empty = classes_without_samples(card, found.tallies.values())
    update = {"splits": splits} | ({"unused_classes": empty} if empty else {})
    return replace(found, card=card.model_copy(update=update))


def _card(recipe: Recipe, name: str, made_by: dict[str, Any]) -> DatasetCard:
    """The card of a data set without its splits."""
    return DatasetCard.model_validate(
        {
            "name": name,
            "splits": {},
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
    ranges: list[SampleRange],
    results: Iterator[RangeResult],
    progress: Callable[[int, int], None] | None,
) -> tuple[Understanding, list[str]]:
    """Wait for the results of all ranges; returns what they amount to, and one line per repeated key."""
    tallies = {split: Tally() for split in recipe.splits}
    found = Understanding(card, tallies, recipe.notices, recipe.left_alone.lines(), list(recipe.faults))
    done, total = 0, sum(recipe.splits.values())
    with DuplicateFinder() as finder:
        for samples, result in zip(ranges, results, strict=True):
            found.problems.extend(result.problems)
            finder.add(result.hashes)
            found.tallies[samples.split].merge(result.tally)
            done += samples.last - samples.first
            if progress:
                progress(done, total)
        return found, list(_repeated_keys(recipe, *finder.duplicates()))


def _repeated_keys(recipe: Recipe, hashes: NDArray[np.uint64], numbers: NDArray[np.int64]) -> Iterator[str]:
    """One line per sample whose key an earlier one has.

    Args:
        hashes, numbers: see `DuplicateFinder.duplicates`; samples are numbered over all splits.
    """
    splits = recipe.splits
    begin = dict(zip(splits, accumulate(splits.values(), initial=0), strict=False))
    first: dict[int, int] = {}
    earliest = [first.setdefault(key, number) for key, number in zip(hashes.tolist(), numbers.tolist(), strict=True)]
    pairs = sorted(pair for pair in zip(numbers.tolist(), earliest, strict=True) if pair[0] != pair[1])

    def place(number: int) -> tuple[str, int]:
        split = next(split for split in reversed(splits) if begin[split] <= number)
        return split, number - begin[split]

    for shown, (number, earlier) in enumerate(pairs):
        name, other = (recipe.origin(*place(n)) or "{} {}".format(*place(n)) for n in (number, earlier))
        remedy = "list it once" if name == other else "rename one of them"
        if shown >= MAX_PROBLEMS_SHOWN:  # is only counted
            yield f"{name}: {other} has its key; {remedy}"
        elif (key := recipe.make(*place(number)).key) == recipe.make(*place(earlier)).key:  # not only the hash
            yield f"{name}: its key would be {key!r}, which {other} has; {remedy}"
