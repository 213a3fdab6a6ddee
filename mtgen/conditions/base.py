"""What a modality is: how it is taken from a batch, and how it becomes a vector (and tokens) in the shared representation space."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from mtgen.config import ConditionSettings
from mtgen.schema import Batch


@dataclass(frozen=True)
class ConditionSizes:
    """What a modality has to know of the data and the networks.

    Attributes:
        classes, mask_classes, domains: numbers of them; 0 where the data set has none.
        vocabulary: number of different tokens of captions, 0 (padding) counted in.
        sound: bands and frames of a spectrogram.
        size: dimensions of the shared representation space.
    """

    classes: int
    mask_classes: int
    domains: int
    vocabulary: int
    sound: tuple[int, int]
    size: int


@dataclass
class Encoded:
    """A modality in the shared space.

    Attributes:
        pooled: `[B,d]`, of any length: it is brought to sqrt(d).
        tokens: `[B,T,d]`, and `present` `[B,T]` bool, for modalities of several parts.
    """

    pooled: Tensor
    tokens: Tensor | None = None
    present: Tensor | None = None


class Modality(nn.Module):
    """One modality: everything that is its own. Subclasses live in one file each and register themselves in `config.CONDITIONS`.

    Class attributes:
        Settings: the modality's section of the configuration.
        component: what of a sample it is taken from ("class", "mask", "boxes", "caption", "sound"); `None`: every sample has it.
        field: of the card, that has to name something ("classes", "mask_classes"); `None`: it needs no names.
        sequence: whether it gives tokens.
        spatial: whether it is laid out in space (a layout) and has no vector.
        varies: how many random numbers `varied` takes for a sample; 0: a training step sees the raw form as it is.
    """

    Settings: ClassVar[type[ConditionSettings]] = ConditionSettings
    component: ClassVar[str | None] = None
    field: ClassVar[str | None] = None
    sequence: ClassVar[bool] = False
    spatial: ClassVar[bool] = False
    varies: ClassVar[int] = 0

    def __init__(self, settings: Any, sizes: ConditionSizes) -> None:
        super().__init__()
        self.settings = settings
        self.sizes = sizes

    def value(self, batch: Batch) -> Tensor:
        """The raw form of a batch's samples: `[B,...]`, anything where a sample has none."""
        raise NotImplementedError

    def varied(self, value: Tensor, random: Tensor) -> Tensor:
        """Raw form, as a training step sees it: another one at every look. `random`: `[B,varies]` in [0,1)."""
        return value

    def encode(self, value: Tensor) -> Encoded:
        """Raw form -> the shared space."""
        raise NotImplementedError

    @property
    def channels(self) -> int:
        """Maps of a spatial modality."""
        return 0

    def same(self, value: Tensor) -> Tensor | None:
        """`[n,...]` raw -> `[n,n]` bool: which rows ask for just the same; `None`: no two rows ever do."""
        return None
