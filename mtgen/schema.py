"""The only things that data, networks, tasks and evaluation exchange."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

IGNORE_INDEX = 255
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
    domains: list[str] = Field(default_factory=list, description="of a mixture: the names of its data sets")
    ignore_index: int = IGNORE_INDEX
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
        mask: `[B,H,W]` int64 mask class; 255 (`IGNORE_INDEX`) where unknown or missing.
        present: component -> `[B]` bool, for the components that were asked for.
        step_position: `[G]` int64, on the CPU: positions of the whole global batch, the same on every worker.
        step_present: component -> `[G]` bool, on the CPU: which samples of the whole global batch carry it. Losses are
            normalized by these counts, so that a mean is over the global batch and no worker has to ask another.
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
        found = {
            name: getattr(self, name)
            for name in ("image", "label", "mask", "boxes", "labels", "caption", "sound", "domain")
        }
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


def _joined(parts: list[Tensor | None], sizes: list[int]) -> Tensor | None:
    """One tensor with the rows of all parts in order; a part that is missing is zeros of its size; `None` where all are."""
    there = [part for part in parts if part is not None]
    if not there:
        return None
    filled = [
        p if p is not None else there[0].new_zeros(n, *there[0].shape[1:]) for p, n in zip(parts, sizes, strict=True)
    ]
    return torch.cat(filled)


@dataclass
class Prompt:
    """What is asked for, as a user or a sample gives it. Any part may be missing in any row; a row with none asks for nothing.

    Attributes:
        size: number of rows B.
        values: modality -> its raw form, see the modality's file in `mtgen.conditions`; 0 where it is not given.
        given: modality -> `[B]` bool.
    """

    size: int
    values: dict[str, Tensor]
    given: dict[str, Tensor]

    def __len__(self) -> int:
        return self.size

    def rows(self, index: Tensor) -> "Prompt":
        """The rows that `index` selects."""
        chosen = [{name: value[index] for name, value in part.items()} for part in (self.values, self.given)]
        return Prompt(len(index), *chosen)

    @staticmethod
    def cat(parts: "list[Prompt]") -> "Prompt":
        """The rows of several prompts that ask by the same modalities."""
        joined = [
            {name: torch.cat([part[name] for part in some]) for name in some[0]}
            for some in ([prompt.values for prompt in parts], [prompt.given for prompt in parts])
        ]
        return Prompt(sum(map(len, parts)), *joined)

    def only(self, name: str) -> "Prompt":
        """The same rows with one modality alone."""
        return Prompt(self.size, {name: self.values[name]}, {name: self.given[name]})

    def to(self, device: torch.device | str) -> "Prompt":
        """The prompt with its tensors on `device`."""
        moved = [{name: value.to(device) for name, value in part.items()} for part in (self.values, self.given)]
        return Prompt(self.size, *moved)

    @staticmethod
    def of_classes(labels: Tensor) -> "Prompt":
        """`[B]` class numbers (-1: none asked for) -> the prompt."""
        return Prompt(len(labels), {"class": labels.clamp_min(0)}, {"class": labels >= 0})


@dataclass
class Condition:
    """What is asked for, in the shared representation space, and what is laid out in space.

    Attributes:
        pooled: `[B,d]`.
        tokens: `[B,T,d]` for cross-attention, and `present` `[B,T]` bool: which of them are there; `None` where no
            modality has several tokens.
        layout: `[B,L,H,W]` what should be where, see `mtgen.conditions.layout`; 0 in rows without; `None` where no row has any.
        content: `[B,S,h,w]` spatial latent of an image that is to be drawn anew; 0 in rows without; `None` where no row has any.
    """

    pooled: Tensor
    tokens: Tensor | None = None
    present: Tensor | None = None
    layout: Tensor | None = None
    content: Tensor | None = None

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        changed: dict[str, Any] = {
            f.name: None if (v := getattr(self, f.name)) is None else change(v) for f in fields(self)
        }
        return Condition(**changed)

    def rows(self, index: Tensor | slice) -> "Condition":
        """The rows that `index` selects."""
        return self._map(lambda value: value[index])

    def detach(self) -> "Condition":
        """The condition without its graph."""
        return self._map(Tensor.detach)

    @staticmethod
    def cat(conditions: "list[Condition]") -> "Condition":
        """One condition with the rows of all, in order; a layout or content that only some have is 0 in the others' rows.

        Where some have tokens, the others have one: their pooled vector.
        """
        sizes = [len(condition.pooled) for condition in conditions]
        joined: dict[str, Any] = {
            f.name: _joined([getattr(c, f.name) for c in conditions], sizes) for f in fields(Condition)[3:]
        }
        pooled = torch.cat([condition.pooled for condition in conditions])
        if all(condition.tokens is None for condition in conditions):
            return Condition(pooled, **joined)
        tokens = [c.pooled[:, None] if c.tokens is None else c.tokens for c in conditions]
        there = [
            t.new_ones(t.shape[:2], dtype=torch.bool) if c.present is None else c.present
            for c, t in zip(conditions, tokens, strict=True)
        ]
        longest = max(t.shape[1] for t in tokens)
        padded = [F.pad(t, (0, 0, 0, longest - t.shape[1])) for t in tokens]
        present = [F.pad(t, (0, longest - t.shape[1])) for t in there]
        return Condition(pooled, torch.cat(padded), torch.cat(present), **joined)


@dataclass
class Canvas:
    """What the generator draws, and what a real sample looks like in the same form.

    Attributes:
        image: `[B,C,H,W]`, values around [-1, 1].
        mask: `[B,M,H,W]` probabilities of the mask classes (one-hot for real samples); `None` without mask classes.
        shown: `[B]` bool: whether the discriminator sees the mask of a sample.
        boxes: `[B,K+2,h,w]` center maps of the classes and the size maps, see `mtgen.networks.center_maps`; `None` where boxes are not drawn.
        boxed: `[B]` bool: whether the discriminator sees the boxes of a sample.
    """

    image: Tensor
    mask: Tensor | None = None
    shown: Tensor | None = None
    boxes: Tensor | None = None
    boxed: Tensor | None = None

    def map(self, change: Any) -> "Canvas":
        """The canvas with `change` applied to each of its tensors."""
        changed: dict[str, Any] = {
            f.name: None if (v := getattr(self, f.name)) is None else change(v) for f in fields(self)
        }
        return Canvas(**changed)

    def map_generated(self, change: Any) -> "Canvas":
        """The canvas with `change(tensor, name)` applied to what is drawn: image, mask and boxes."""
        changed = {
            name: change(v, name) for name in ("image", "mask", "boxes") if (v := getattr(self, name)) is not None
        }
        return replace(self, **changed)

    @staticmethod
    def cat(canvases: "list[Canvas]") -> "Canvas":
        """One canvas with the samples of all, in order; labels that only some have are 0, and not shown, in the others' rows."""
        sizes = [len(canvas.image) for canvas in canvases]
        joined: dict[str, Any] = {
            f.name: _joined([getattr(c, f.name) for c in canvases], sizes) for f in fields(Canvas)
        }
        return Canvas(**joined)


@dataclass
class Prediction:
    """What the discriminator reads in images; a part is `None` where the run has no such task.

    Attributes:
        class_logits: `[B,K]`.
        label_logits: `[B,K]`: of every class by itself, whether it is in the image.
        mask_logits: `[B,M,H,W]`.
        boxes: `[B,N,6]`: x0, y0, x1, y1 as shares of the image's sides, class, score; best first, rows of score 0 are none.
        posterior: mean and log variance of the latent, each `[B,Z]`.
        embedding: `[B,d]` in the shared representation space, of length 1.
        content: `[B,S,h,w]` spatial latent for translation.
    """

    class_logits: Tensor | None = None
    label_logits: Tensor | None = None
    mask_logits: Tensor | None = None
    boxes: Tensor | None = None
    posterior: tuple[Tensor, Tensor] | None = None
    embedding: Tensor | None = None
    content: Tensor | None = None
