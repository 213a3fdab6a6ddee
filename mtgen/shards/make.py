"""Make a data set by a recipe: a file in `recipes/` that registers itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from mtgen.config import Section, check
from mtgen.errors import ConfigError
from mtgen.registry import Registry, suggest
from mtgen.schema import DatasetCard
from mtgen.shards.write import Sample, ShardWriter
from mtgen.yaml_text import override


class Recipe(ABC):
    """What a file in `recipes/` registers: made from its options and a seed, it yields samples."""

    Options: ClassVar[type[Section]]
    classes: ClassVar[list[str]]
    mask_classes: ClassVar[list[str]]
    source: ClassVar[str]
    licence: ClassVar[str]

    def __init__(self, options: Any, seed: int) -> None:
        self.options, self.seed = options, seed

    @property
    @abstractmethod
    def splits(self) -> dict[str, int]:
        """Split -> number of samples."""

    @abstractmethod
    def samples(self, split: str) -> Iterator[Sample]:
        """The samples of a split: a function of the options and the seed alone."""


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


def make(
    recipe: str,
    out: str | Path,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
    **options: Any,
) -> DatasetCard:
    """Write the data set that `recipe` makes into the folder `out`; the same arguments give the same bytes.

    Args:
        recipe: name of a file in `recipes/`.
        out: folder, not there yet or empty.
        seed: another seed, other scenes.
        progress: called with (samples done, samples in all) after each sample.
        overwrite: replace the data set that is in `out`.
        **options: the recipe's own.

    Raises:
        ConfigError: unknown recipe, unknown option, impossible value.
        DataError: `out` is taken, or cannot be written.
    """
    kind = _recipe(recipe)
    settings = check(kind.Options, options)
    made_by = {"recipe": recipe, "seed": seed, "options": settings.model_dump(mode="json")}
    maker = kind(settings, seed)
    total, done = sum(maker.splits.values()), 0
    writer = ShardWriter(
        out, recipe, kind.classes, kind.mask_classes, source=kind.source, licence=kind.licence, overwrite=overwrite, made_by=made_by
    )
    with writer:
        for split in maker.splits:
            for sample in maker.samples(split):
                writer.write(split, sample)
                done += 1
                if progress:
                    progress(done, total)
    return writer.card
