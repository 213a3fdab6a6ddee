"""What a label of one kind says about another: masks and boxes about classes, boxes and classes about masks.

Classes and mask classes correspond where they have the same name. A mask or boxes of a single class tell the class of
an image without one; boxes tell where a mask's classes can be at all, and that each of them is there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtgen.schema import IGNORE_INDEX

MIN_PROBABILITY = 1e-6
"""Lower bound of a probability whose logarithm is a loss; below it there is no gradient, as in a bad box."""


def name_pairs(classes: Sequence[str], mask_classes: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of a class and the mask class of the same name, by their numbers."""
    return [(classes.index(name), number) for number, name in enumerate(mask_classes) if name in classes]


def mask_classes_of(label: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Class numbers, any shape -> the numbers of their mask classes; -1 where there is none."""
    found = torch.full_like(label, -1)
    for number, mask_number in pairs:
        found = torch.where(label == number, mask_number, found)
    return found


def classes_in_mask(mask: Tensor, pairs: Sequence[tuple[int, int]], classes: int) -> Tensor:
    """Masks `[B,H,W]` -> `[B,classes]` bool: the classes of which a mask has pixels."""
    flat = mask.flatten(1)
    there = torch.zeros(len(mask), IGNORE_INDEX + 1, dtype=torch.bool, device=mask.device)
    there = there.scatter(1, flat, torch.ones_like(flat, dtype=torch.bool))
    found = torch.zeros(len(mask), classes, dtype=torch.bool, device=mask.device)
    for number, mask_number in pairs:
        found[:, number] = there[:, mask_number]
    return found


def single_class(present: Tensor) -> tuple[Tensor, Tensor]:
    """`[B,K]` bool -> the class `[B]` of rows with exactly one (0 elsewhere), and `[B]` bool: which rows those are."""
    is_single = present.sum(1) == 1
    return present.int().argmax(1) * is_single, is_single


def outside_boxes(log_probability: Tensor, inside: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Loss of mask classes where no box of them is: `[B]`, minus the mean log-probability of what can be in a pixel.

    Args:
        log_probability: `[B,M,H,W]` of the mask classes.
        inside: `[B,K,H,W]`: 1 where a box of the class covers a pixel.
        pairs: see `name_pairs`. Mask classes without a class can be anywhere.
    """
    impossible = torch.zeros_like(log_probability, dtype=torch.bool)
    for number, mask_number in pairs:
        impossible[:, mask_number] = inside[:, number] == 0
    impossible &= ~impossible.all(1, keepdim=True)  # a data set whose masks name no background
    return -log_probability.masked_fill(impossible, -torch.inf).logsumexp(1).mean((1, 2))


def box_tightness(probability: Tensor, boxes: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """`[B]`: each row and column of pixels in a box should have a pixel of the box's class (Hsu et al. 2019).

    Args:
        probability: `[B,M,H,W]` of the mask classes.
        boxes: `[B,N,5]` x0, y0, x1, y1 as fractions of the sides, and the class; class -1: no box.
        pairs: see `name_pairs`; boxes of classes that no mask class has do not count.
    """
    height, width = probability.shape[2:]
    mask_class = mask_classes_of(boxes[..., 4].long(), pairs)
    y = (torch.arange(height, device=boxes.device) + 0.5) / height
    x = (torch.arange(width, device=boxes.device) + 0.5) / width
    down = (y >= boxes[..., 1:2]) & (y < boxes[..., 3:4]) & (mask_class >= 0)[..., None]  # [B,N,H]
    across = (x >= boxes[..., 0:1]) & (x < boxes[..., 2:3]) & (mask_class >= 0)[..., None]  # [B,N,W]
    index = mask_class.clamp_min(0)[..., None, None].expand(-1, -1, height, width)
    inside = probability.gather(1, index) * (down[..., :, None] & across[..., None, :])
    found = torch.zeros(len(boxes), device=boxes.device)
    for best, here in ((inside.amax(3), down), (inside.amax(2), across)):
        lines = (-best.clamp_min(MIN_PROBABILITY).log() * here).sum((1, 2))
        found = found + lines / here.sum((1, 2)).clamp_min(1)
    return found / 2
