"""Layouts as conditions: a mask or boxes, as maps that enter the generator at every level."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mtgen.conditions.base import Modality
from mtgen.config import CONDITIONS, ConditionSettings
from mtgen.schema import Batch


def mask_layout(mask: Tensor, classes: int) -> Tensor:
    """`[B,H,W]` mask classes -> `[B,M,H,W]` float32, one-hot; 0 for pixels of unknown class (255)."""
    return (mask[:, None] == torch.arange(classes, device=mask.device)[:, None, None]).float()


def boxes_layout(boxes: Tensor, classes: int, height: int, width: int) -> Tensor:
    """Boxes -> `[B,K,H,W]` float32: 1 where a box of the class covers a pixel's center.

    Args:
        boxes: `[B,N,5]` x0, y0, x1, y1 as fractions of the sides, and the class; class -1: no box.
    """
    y = (torch.arange(height, device=boxes.device) + 0.5) / height
    x = (torch.arange(width, device=boxes.device) + 0.5) / width
    x0, y0, x1, y1, kind = boxes.unbind(-1)
    down = (y >= y0[..., None]) & (y < y1[..., None])
    across = (x >= x0[..., None]) & (x < x1[..., None])
    inside = down[..., :, None] & across[..., None, :] & (kind >= 0)[..., None, None]
    which = F.one_hot(kind.long().clamp_min(0), classes).float()
    return torch.einsum("bnhw,bnk->bkhw", inside.float(), which).clamp(max=1)


@CONDITIONS.register("layout")
class Layout(Modality):
    """A mask of the classes to generate. Raw form: `[B,M,H,W]`, see `mask_layout`.

    It has no vector: the generator adds a projection of it at every level (after Park et al. 2019, SPADE, without
    normalization).
    """

    class Settings(ConditionSettings):
        probability: float = Field(
            0.2, ge=0, le=1, description="probability that a sample with a mask is conditioned on it as a layout"
        )

    component, field, spatial = "mask", "mask_classes", True

    @property
    def channels(self) -> int:
        return self.sizes.mask_classes

    def value(self, batch: Batch) -> Tensor:
        return mask_layout(batch.mask, self.sizes.mask_classes)


@CONDITIONS.register("boxes")
class Boxes(Modality):
    """Boxes of the classes to generate. Raw form: `[B,K,H,W]`, see `boxes_layout`."""

    class Settings(ConditionSettings):
        probability: float = Field(
            0.2, ge=0, le=1, description="probability that a sample with boxes is conditioned on them as a layout"
        )

    component, field, spatial = "boxes", "classes", True

    @property
    def channels(self) -> int:
        return self.sizes.classes

    def value(self, batch: Batch) -> Tensor:
        assert batch.boxes is not None  # the loader provides boxes
        return boxes_layout(batch.boxes, self.sizes.classes, *batch.image.shape[2:])
