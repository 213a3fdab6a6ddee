"""Everything that data, networks, tasks and evaluation exchange."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

IGNORE_INDEX = 255
"""Mask value of a pixel whose class is unknown: no loss, no metric."""

CONFIDENT_SCORE = 0.3
"""Score from which a predicted or generated box counts as one: it is shown, stored and taught (Zhou et al. 2019)."""

COMPONENTS = ("class", "mask", "boxes", "tags", "caption", "sound")
"""What a sample may have besides its image; each may be missing in any sample."""


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

    @property
    def unused_classes(self) -> list[str]:
        """The classes that no split had a sample of when the data set was made; empty if that is not known."""
        return (self.model_extra or {}).get("unused_classes", [])


@dataclass
class Batch:
    """One worker's part of a global batch. Missing components are masked in `present`, never invented.

    Attributes:
        position: `[B]` int64, on the CPU: positions in the order of samples, counted since the start of the run.
        image: `[B,C,H,W]` float32 in [-1, 1].
        label: `[B]` int64 class number; 0 where missing.
        mask: `[B,H,W]` int64 mask class; 255 (`IGNORE_INDEX`) where unknown or missing.
        present: component -> `[B]` bool, for the requested components.
        step_position: `[G]` int64, on the CPU: positions of the whole global batch, the same on every worker.
        step_present: component -> `[G]` bool, on the CPU: which samples of the whole global batch have it. Losses
            are normalized by these counts, so that means are over the global batch without communication.
        step_roles: what `mtgen.training.batch_roles` makes of these two in the loader's thread; `None`: made when used.
        boxes: `[B,N,5]` float32: x0, y0, x1, y1 as fractions of the image's sides, 0 to 1, and the class; -1 in padded
            rows.
        labels: `[B,K]` bool: which classes are in the whole image, including those whose box was cropped away.
        caption: `[B,T]` int64 tokens, 0 after the caption's end.
        sound: `[B,mels,frames]` float32, about -1 (silent) to 1; 0 where missing.
            Boxes, labels, caption and sound are `None` unless they are requested.
        domain: `[B]` int64: number of the data set within a mixture; 0 without a mixture. Loaders always fill it.
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
    step_roles: Any = None

    def _map(self, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Apply `change` to the tensors on the batch's device."""
        found = {
            name: getattr(self, name)
            for name in ("image", "label", "mask", "boxes", "labels", "caption", "sound", "domain")
        }
        changed: dict[str, Any] = {name: change(value) for name, value in found.items() if value is not None}
        return changed | {"present": {name: change(value) for name, value in self.present.items()}}

    def for_each_tensor(self, do: Callable[[Tensor], None]) -> None:
        """Call `do` with each tensor on the batch's device."""

        def pass_on(value: Tensor) -> Tensor:
            do(value)
            return value

        self._map(pass_on)

    def __len__(self) -> int:
        return self.image.shape[0]

    def to(self, device: torch.device | str) -> "Batch":
        """The batch with its sample tensors on `device`; positions and global counts stay on the CPU."""
        return replace(self, **self._map(lambda value: value.to(device, non_blocking=True)))

    def rows(self, index: Tensor | slice, index_there: Tensor | None = None) -> "Batch":
        """The samples that `index` (a tensor on the CPU, or a slice) selects; the global counts are unchanged.

        Args:
            index_there: the same tensor on the batch's device, if it is there already.
        """
        on: Tensor | slice = index
        if not isinstance(index, slice):
            on = index.to(self.image.device, non_blocking=True) if index_there is None else index_there
        return replace(self, position=self.position[index], **self._map(lambda value: value[on]))


def _joined(parts: list[Tensor | None], sizes: list[int]) -> Tensor | None:
    """The rows of all parts in order; zeros for a missing part; `None` if all are missing."""
    there = [part for part in parts if part is not None]
    if not there:
        return None
    filled = [
        p if p is not None else there[0].new_zeros(n, *there[0].shape[1:]) for p, n in zip(parts, sizes, strict=True)
    ]
    return torch.cat(filled)


@dataclass
class Prompt:
    """Raw conditions, as a user or a sample gives them. Any may be missing in any row; a row without is unconditional.

    Attributes:
        size: number of rows B.
        values: modality -> its raw form (see the modality's file in `mtgen.conditions`); 0 where it is not given.
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
        """The rows of several prompts with the same modalities."""
        joined = [
            {name: torch.cat([part[name] for part in some]) for name in some[0]}
            for some in ([prompt.values for prompt in parts], [prompt.given for prompt in parts])
        ]
        return Prompt(sum(map(len, parts)), *joined)

    def only(self, name: str) -> "Prompt":
        """The same rows with only one modality."""
        return Prompt(self.size, {name: self.values[name]}, {name: self.given[name]})

    def to(self, device: torch.device | str) -> "Prompt":
        """The prompt with its tensors on `device`."""
        moved = [{name: value.to(device) for name, value in part.items()} for part in (self.values, self.given)]
        return Prompt(self.size, *moved)

    @staticmethod
    def of_classes(labels: Tensor) -> "Prompt":
        """`[B]` class numbers (-1: unconditional) -> the prompt."""
        return Prompt(len(labels), {"class": labels.clamp_min(0)}, {"class": labels >= 0})


@dataclass
class Condition:
    """Encoded conditions: vectors in the shared representation space, and spatial maps.

    Attributes:
        pooled: `[B,d]`.
        tokens: `[B,T,d]` for cross-attention; `None` if no modality has several tokens.
        present: `[B,T]` bool: which tokens exist.
        layout: `[B,L,H,W]` maps of what should be where (see `mtgen.conditions.layout`); 0 in rows without one; `None`
            if no row has one.
        content: `[B,S,h,w]` spatial latent of an image to translate; 0 in rows without one; `None` if no row has one.
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
        """The condition, detached from the graph."""
        return self._map(Tensor.detach)

    @staticmethod
    def cat(conditions: "list[Condition]") -> "Condition":
        """The rows of all conditions in order; a layout or content that only some have is 0 in the rows of the others.

        If some have tokens, the others have one token: their pooled vector.
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
    """The output of the generator, and a real sample in the same form.

    Attributes:
        image: `[B,C,H,W]`, values around [-1, 1].
        mask: `[B,M,H,W]` probabilities of the mask classes (one-hot for real samples); `None` without mask classes.
        shown: `[B]` bool: whether the discriminator sees the mask of a sample.
        boxes: `[B,K+2,h,w]` center maps of the classes and size maps (see `mtgen.networks.center_maps`); `None` if the
            run generates no boxes.
        boxed: `[B]` bool: whether the discriminator sees the boxes of a sample.
        mask_logits, box_logits: of generated samples, the logits of mask and boxes; `None` for real samples.
    """

    image: Tensor
    mask: Tensor | None = None
    shown: Tensor | None = None
    boxes: Tensor | None = None
    boxed: Tensor | None = None
    mask_logits: Tensor | None = None
    box_logits: Tensor | None = None

    @staticmethod
    def of_logits(image: Tensor, mask_logits: Tensor | None, box_logits: Tensor | None) -> "Canvas":
        """A generated canvas: softmax of the mask's logits over the classes, sigmoid of the box maps'."""
        mask = None if mask_logits is None else mask_logits.softmax(dim=1)
        boxes = None if box_logits is None else box_logits.sigmoid()
        return Canvas(image, mask, boxes=boxes, mask_logits=mask_logits, box_logits=box_logits)

    def map(self, change: Any) -> "Canvas":
        """Apply `change` to each tensor."""
        changed: dict[str, Any] = {
            f.name: None if (v := getattr(self, f.name)) is None else change(v) for f in fields(self)
        }
        return Canvas(**changed)

    def map_generated(self, change: Any) -> "Canvas":
        """Apply `change(tensor, name)` to image, mask and boxes, and to their logits."""
        return replace(self, **{name: change(tensor, name) for name, tensor in self.components()})

    def components(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of image, mask and boxes, and of their logits."""
        for name in ("image", "mask", "boxes", "mask_logits", "box_logits"):
            if (tensor := getattr(self, name)) is not None:
                yield name, tensor

    @staticmethod
    def cat(canvases: "list[Canvas]") -> "Canvas":
        """The samples of all canvases in order; labels that only some have are 0 and hidden in the other rows."""
        sizes = [len(canvas.image) for canvas in canvases]
        joined: dict[str, Any] = {
            f.name: _joined([getattr(c, f.name) for c in canvases], sizes) for f in fields(Canvas)
        }
        return Canvas(**joined)


@dataclass
class Prediction:
    """Predictions of the discriminator for images; a part is `None` if the run does not have its task.

    Attributes:
        class_logits: `[B,K]`.
        label_logits: `[B,K]`: independent logits of each class being in the image.
        mask_logits: `[B,M,H,W]`.
        boxes: `[B,N,6]`: x0, y0, x1, y1 as fractions of the image's sides, class, score; best first, padded with
            rows of score 0.
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
