"""The only things that data, networks, tasks and evaluation exchange."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

IGNORE = 255
"""Mask value of a pixel whose class is unknown: no loss, no metric."""

COMPONENTS = ("class", "mask", "boxes", "caption", "sound")
"""What a sample may carry besides its image; each may be missing in any sample."""


class Split(BaseModel):
    """One named part of a data set: how many samples, in which shards (`train-{000000..000003}.tar`)."""

    samples: int
    shards: str | list[str]


class DatasetCard(BaseModel):
    """`dataset.json`: what the numbers in the shards mean."""

    model_config = ConfigDict(extra="allow")

    name: str
    classes: list[str] = Field(default_factory=list)
    mask_classes: list[str] = Field(default_factory=list)
    ignore_index: int = IGNORE
    source: str = ""
    licence: str = ""
    splits: dict[str, Split]


@dataclass
class Batch:
    """A worker's part of one global batch. What is missing is masked in `present`, never invented.

    Attributes:
        position: `[B]` int64, on the CPU: each sample's place in the order, counted since the start of the run.
        image: `[B,C,H,W]` float32 in [-1, 1].
        label: `[B]` int64 class number; 0 where missing.
        mask: `[B,H,W]` int64 mask class; 255 (`IGNORE`) where unknown or missing.
        present: component -> `[B]` bool, for the components that were asked for.
        step_position: `[G]` int64, on the CPU: positions of the whole global batch, the same on every worker.
        step_present: component -> `[G]` bool, on the CPU: which samples of the whole global batch carry it. Losses are
            normalised by these counts, so that a mean is over the global batch and no worker has to ask another.
        boxes: `[B,N,5]` float32: x0, y0, x1, y1 as shares of the image's sides, 0 to 1, and the class; the class of padded rows is -1.
        labels: `[B,K]` bool: which classes are in the image as a whole, also where its box was cut off.
        caption: `[B,T]` int64 tokens, 0 after the caption's end.
        sound: `[B,mels,frames]` float32, about -1 (silent) to 1; 0 where missing.
            These four are `None` where they were not asked for.
        domain: `[B]` int64: the number of the data set of a mixture that each sample is from; 0 without a mixture. Always filled by
            loaders.
    """

    position: Tensor
    image: Tensor
    label: Tensor
    mask: Tensor
    present: dict[str, Tensor]
    step_position: Tensor
    step_present: dict[str, Tensor]
    boxes: Tensor | None = None
    labels: Tensor | None = None
    caption: Tensor | None = None
    sound: Tensor | None = None
    domain: Tensor | None = None

    def _map(self, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """`change` applied to what lies on the batch's device."""
        found = {name: getattr(self, name) for name in ("image", "label", "mask", "boxes", "labels", "caption", "sound", "domain")}
        changed: dict[str, Any] = {name: change(value) for name, value in found.items() if value is not None}
        return changed | {"present": {name: change(value) for name, value in self.present.items()}}

    def __len__(self) -> int:
        return self.image.shape[0]

    def to(self, device: torch.device | str) -> "Batch":
        """The batch with its sample tensors on `device`; positions and global counts stay on the CPU."""
        return replace(self, **self._map(lambda value: value.to(device, non_blocking=True)))

    def rows(self, index: Tensor | slice) -> "Batch":
        """The samples that `index` selects (a tensor on the CPU, or a slice); the global counts stay the whole step's."""
        on = index if isinstance(index, slice) else index.to(self.image.device)
        return replace(self, position=self.position[index], **self._map(lambda value: value[on]))


@dataclass
class Condition:
    """What is asked for, in the shared representation space.

    Attributes:
        pooled: `[B,d]`.
    """

    pooled: Tensor


@dataclass
class Canvas:
    """What the generator draws, and what a real sample looks like in the same form.

    Attributes:
        image: `[B,C,H,W]`, values around [-1, 1].
        mask: `[B,M,H,W]` probabilities of the mask classes (one-hot for real samples); `None` without mask classes.
        shown: `[B]` bool: whether the discriminator sees the mask of a sample.
    """

    image: Tensor
    mask: Tensor | None = None
    shown: Tensor | None = None

    def map(self, change: Any) -> "Canvas":
        """The canvas with `change` applied to each of its tensors."""
        changed: dict[str, Any] = {f.name: None if (v := getattr(self, f.name)) is None else change(v) for f in fields(self)}
        return Canvas(**changed)

    @staticmethod
    def cat(canvases: "list[Canvas]") -> "Canvas":
        """One canvas with the samples of all, in order."""

        def joined(name: str) -> Any:
            parts = [getattr(canvas, name) for canvas in canvases]
            return None if parts[0] is None else torch.cat(parts)

        return Canvas(**{f.name: joined(f.name) for f in fields(Canvas)})


@dataclass
class Prediction:
    """What the discriminator reads in images.

    Attributes:
        class_logits: `[B,K]`, or `None` where the task is off.
        mask_logits: `[B,M,H,W]`, or `None`.
        posterior: mean and log variance of the latent, each `[B,Z]`, or `None`.
    """

    class_logits: Tensor | None = None
    mask_logits: Tensor | None = None
    posterior: tuple[Tensor, Tensor] | None = None
