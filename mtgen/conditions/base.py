"""The interface of a modality: how it is taken from a batch and encoded in the shared representation space."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from mtgen.config import ConditionSettings
from mtgen.schema import Batch


@dataclass(frozen=True)
class ConditionSizes:
    """Sizes of the data and the networks, from which a modality builds its encoder.

    Attributes:
        classes: number of classes; 0 if the data set has none.
        mask_classes: number of mask classes; 0 if the data set has none.
        domains: number of data sets of a mixture.
        vocabulary: number of different tokens of captions, including 0 (padding).
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
    """A modality, encoded in the shared space.

    Attributes:
        pooled: `[B,d]` of any length; it is normalized to sqrt(d).
        tokens: `[B,T,d]` for cross-attention; `None` if the modality has no tokens.
        present: `[B,T]` bool: which tokens are there.
    """

    pooled: Tensor
    tokens: Tensor | None = None
    present: Tensor | None = None


class Modality(nn.Module):
    """One modality: everything specific to it. A subclass is one file that registers itself in `config.CONDITIONS`.

    Class attributes:
        Settings: the modality's section of the configuration.
        component: the component of a sample that it needs, one of `mtgen.schema.COMPONENTS`; `None`: every
            sample has it.
        field: the field of the data set's card that must not be empty ("classes", "mask_classes"); `None`: no field.
        sequence: whether it has tokens.
        spatial: whether it is a layout, a map over the image, which has no vector.

    Attributes:
        random_numbers: how many random numbers per sample `augment` takes; 0: the modality is not augmented.
    """

    Settings: ClassVar[type[ConditionSettings]] = ConditionSettings
    component: ClassVar[str | None] = None
    field: ClassVar[str | None] = None
    sequence: ClassVar[bool] = False
    spatial: ClassVar[bool] = False
    random_numbers: int = 0

    def __init__(self, settings: Any, sizes: ConditionSizes) -> None:
        super().__init__()
        self.settings = settings
        self.sizes = sizes

    def value(self, batch: Batch) -> Tensor:
        """Return the raw form of a batch's samples: `[B,...]`, with arbitrary values for samples without it."""
        raise NotImplementedError

    def augment(self, value: Tensor, random: Tensor) -> Tensor:
        """Return the augmented raw form, for training.

        Args:
            random: `[B,random_numbers]` in [0,1).
        """
        return value

    def encode(self, value: Tensor) -> Encoded:
        """Encode the raw form in the shared space."""
        raise NotImplementedError

    @property
    def channels(self) -> int:
        """Number of maps of a spatial modality."""
        return 0

    def identity(self, value: Tensor) -> Tensor | None:
        """`[n,...]` raw form -> `[n]` int64, equal for rows that are the same condition; `None`: no two ever are."""
        return None
