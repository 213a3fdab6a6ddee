"""Boxes as maps and back: a heat map of centers for every class, and what is to be known at each center.

Source: Zhou et al. 2019, "Objects as Points" (CenterNet); radii of the heat map's peaks after Law and Deng 2018 (CornerNet).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SHIFTED_IOU = 0.7
"""A peak of the heat map reaches as far as a box could be moved that still overlaps its own by so much."""

MIN_PEAK_SIGMA = 0.8
"""Cells that a peak's standard deviation has at least: a single hot cell would be hard to draw."""

MIN_SIZE_HEAT = 0.05
"""Cells that are hotter than this around a center carry its size on a canvas."""

MIN_CENTER_HEAT = 0.1
"""A center below it is no box."""

MAX_BOXES = 32
"""Boxes that are read in an image, at most."""

INITIAL_CENTER_LOGIT = -2.2
"""Logit that centers start from: a probability of a tenth, so that the many empty cells do not drown the few others (Lin et al. 2017)."""


@dataclass
class CenterMaps:
    """Boxes of a batch as targets on a grid of `h x w` cells.

    Attributes:
        heat: `[B,K,h,w]`, 1 in the cell that holds a center, falling off around it.
        size: `[B,2,h,w]` width and height as shares of the image's sides, in the cells with a center; 0 elsewhere.
        offset: `[B,2,h,w]` place of the center in its cell, x and y, 0 to 1.
        here: `[B,1,h,w]` bool: the cells with a center.
        around: `[B,2,h,w]` the size also in the cells around a center, as far as its peak reaches (where two reach a cell, the larger).
    """

    heat: Tensor
    size: Tensor
    offset: Tensor
    here: Tensor
    around: Tensor

    def canvas(self) -> Tensor:
        """`[B,K+2,h,w]` what a generator draws: the heat maps, then width and height, both times the heat of the hottest class."""
        return torch.cat([self.heat, self.around * self.heat.amax(1, keepdim=True)], dim=1)


def encode(boxes: Tensor, classes: int, grid: tuple[int, int]) -> CenterMaps:
    """`[B,N,5]` (x0, y0, x1, y1 as shares of the image's sides, class; class -1: no box) -> targets on a grid of (h, w) cells.

    Where two boxes of a class share a cell, the later one's size and offset count.
    """
    height, width = grid
    batch = len(boxes)
    there = boxes[..., 4] >= 0
    extent = (boxes[..., 2:4] - boxes[..., 0:2]) * there[..., None]
    center = (boxes[..., 0:2] + boxes[..., 2:4]) / 2 * boxes.new_tensor([width, height])
    cell = center.floor().clamp_min(0)
    cell = torch.minimum(cell, boxes.new_tensor([width - 1, height - 1]))

    sigma = (_radius(extent * boxes.new_tensor([width, height])) / 3).clamp_min(MIN_PEAK_SIGMA)
    across = torch.arange(width, device=boxes.device) - cell[..., 0:1]
    down = torch.arange(height, device=boxes.device) - cell[..., 1:2]
    squared = across[..., None, :].square() + down[..., :, None].square()
    peak = (-squared / (2 * sigma.square())[..., None, None]).exp() * there[..., None, None]  # [B,N,h,w]
    kind = boxes[..., 4].long().clamp_min(0)[..., None, None].expand_as(peak)
    heat = peak.new_zeros(batch, classes, height, width).scatter_reduce(1, kind, peak, "amax")
    reached = (peak > MIN_SIZE_HEAT)[:, :, None] * extent[..., None, None]
    around = torch.cat([reached, peak.new_zeros(batch, 1, 2, height, width)], 1).amax(1)

    flat = (cell[..., 1] * width + cell[..., 0]).long()
    index = torch.where(there, flat, height * width)  # boxes that are none go into a cell of their own, cut off below
    known = torch.cat([extent, center - cell], dim=-1).transpose(1, 2)  # [B,4,N]
    maps = known.new_zeros(batch, 4, height * width + 1).scatter(2, index[:, None].expand(-1, 4, -1), known)
    here = torch.zeros(batch, height * width + 1, dtype=torch.bool, device=boxes.device).scatter(1, index, True)
    maps, here = maps[..., :-1].unflatten(2, grid), here[:, :-1].unflatten(1, grid)
    return CenterMaps(heat, maps[:, :2], maps[:, 2:], here[:, None], around)


def _radius(extent: Tensor) -> Tensor:
    """`[B,N,2]` width and height in cells -> `[B,N]`: how far a box may be moved along both axes and overlap its own by `MIN_SHIFTED_IOU`.

    Moved by r: (w-r)(h-r) = OVERLAP * (2wh - (w-r)(h-r)), hence (w-r)(h-r) = 2 OVERLAP / (1 + OVERLAP) * wh.
    """
    wide, high = extent.unbind(-1)
    kept = 2 * MIN_SHIFTED_IOU / (1 + MIN_SHIFTED_IOU)
    both = wide + high
    return (both - (both.square() - 4 * (1 - kept) * wide * high).clamp_min(0).sqrt()) / 2


def decode(heat: Tensor, size: Tensor, offset: Tensor, most: int = MAX_BOXES) -> Tensor:
    """Center maps -> `[B,most,6]`: x0, y0, x1, y1 as shares of the image's sides, class, score; the surest first.

    A center is a cell that is at least as hot as the eight around it and hotter than `MIN_CENTER_HEAT`; rows beyond the last have score 0.

    Args:
        heat: `[B,K,h,w]` in 0 to 1.
        size: `[B,2,h,w]` width and height as shares of the image's sides.
        offset: `[B,2,h,w]` x and y in the cell.
    """
    batch, classes, height, width = heat.shape
    peak = heat * (heat == F.max_pool2d(heat, 3, 1, 1)) * (heat > MIN_CENTER_HEAT)
    score, flat = peak.flatten(1).topk(min(most, classes * height * width), dim=1)
    kind, cell = flat // (height * width), flat % (height * width)
    known = torch.cat([size, offset], 1).flatten(2).gather(2, cell[:, None].expand(-1, 4, -1))
    wide, high, right, down = known.unbind(1)
    x, y = (cell % width + right) / width, (cell // width + down) / height
    corners = torch.stack([x - wide / 2, y - high / 2, x + wide / 2, y + high / 2], dim=-1).clamp(0, 1)
    found = torch.cat([corners, kind[..., None].to(corners), score[..., None]], dim=-1)
    return F.pad(found, (0, 0, 0, most - found.shape[1])) if found.shape[1] < most else found


def decode_canvas(canvas: Tensor, most: int = MAX_BOXES) -> Tensor:
    """`[B,K+2,h,w]` as a generator draws it -> boxes as `decode` gives them; a center lies in the middle of its cell."""
    heat, size = canvas[:, :-2], canvas[:, -2:]
    hottest = heat.amax(1, keepdim=True).clamp_min(1e-6)
    return decode(heat, size / hottest, torch.full_like(size, 0.5), most)


def focal(logits: Tensor, target: CenterMaps, alpha: float = 2.0, beta: float = 4.0) -> Tensor:
    """Penalty-reduced focal loss, summed over classes and cells: `[B]`. Source: Law and Deng 2018, equation 1."""
    probability, heat = logits.sigmoid(), target.heat
    center = heat == 1
    at_centers = -(1 - probability).pow(alpha) * F.logsigmoid(logits) * center
    elsewhere = -(1 - heat).pow(beta) * probability.pow(alpha) * F.logsigmoid(-logits) * ~center
    return (at_centers + elsewhere).sum((1, 2, 3))
