"""The interface of a recipe, which makes the samples of a data set, and the registry that the recipes' files fill."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from mtgen.config import ConfigSection
from mtgen.registry import Registry
from mtgen.shards.input_names import LeftAlone
from mtgen.shards.listing import Listing, Proposal
from mtgen.shards.write import Sample

MAX_PROBLEMS_SHOWN = 20
"""Problems that one error lists; the others are counted."""

UNNAMED_CLASS_PREFIX = "class "
"""Prefix of the names of unnamed mask classes, before their number."""


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
