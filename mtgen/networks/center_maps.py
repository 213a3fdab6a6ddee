"""Conversion between boxes and center maps: a heat map of centers per class, and sizes and offsets at the centers.

Source: Zhou et al. 2019, "Objects as Points" (CenterNet); radii of the peaks after Law and Deng 2018 (CornerNet).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mtgen.networks.device_constants import constant
from mtgen.schema import CONFIDENT_SCORE

MIN_SHIFTED_IOU = 0.7
"""The radius of a peak is the largest shift at which the shifted box still has this IoU with the original."""

MIN_PEAK_SIGMA = 0.8
"""Lower bound of a peak's standard deviation, cells: a single hot cell would be hard to generate."""

MIN_SIZE_HEAT = 0.05
"""On a canvas, cells around a center carry its size if their heat is above this."""

MIN_CENTER_HEAT = 0.1
"""Lower bound of a center's heat; below it there is no box."""

MAX_BOXES = 32
"""Upper bound of predicted boxes per image."""

INITIAL_CENTER_LOGIT = -2.2
"""Initial logit of centers, a probability of 0.1, so that the many empty cells do not dominate (Lin et al. 2017)."""


@dataclass
class CenterMaps:
    """The boxes of a batch as targets on a grid of `h x w` cells.

    Attributes:
        heat: `[B,K,h,w]`, 1 in a cell with a center, decreasing around it.
        size: `[B,2,h,w]` width and height as fractions of the image's sides in cells with a center; 0 elsewhere.
        offset: `[B,2,h,w]` position of the center in its cell, x and y, 0 to 1.
        here: `[B,1,h,w]` bool: cells with a center.
        around: `[B,2,h,w]` sizes also in the cells around a center that its peak reaches; where two peaks reach a cell,
            the larger.
    """

    heat: Tensor
    size: Tensor
    offset: Tensor
    here: Tensor
    around: Tensor

    def canvas(self) -> Tensor:
        """`[B,K+2,h,w]` the maps of a canvas: heat maps, then width and height times the largest heat of each cell."""
        return torch.cat([self.heat, self.around * self.heat.amax(1, keepdim=True)], dim=1)


def encode(boxes: Tensor, classes: int, grid: tuple[int, int]) -> CenterMaps:
    """Convert boxes to targets.

    If two centers of a class fall into one cell, size and offset are those of the later box.

    Args:
        boxes: `[B,N,5]` x0, y0, x1, y1 as fractions of the image's sides, and the class; class -1: no box.
        classes: number of classes.
        grid: height and width in cells.
    """
    height, width = grid
    batch = len(boxes)
    is_box = boxes[..., 4] >= 0
    extent = (boxes[..., 2:4] - boxes[..., 0:2]) * is_box[..., None]
    center = (boxes[..., 0:2] + boxes[..., 2:4]) / 2 * constant((width, height), boxes.dtype, boxes.device)
    cell = center.floor().clamp_min(0)
    cell = torch.minimum(cell, constant((width - 1, height - 1), boxes.dtype, boxes.device))

    sigma = (_radius(extent * constant((width, height), boxes.dtype, boxes.device)) / 3).clamp_min(MIN_PEAK_SIGMA)
    across = torch.arange(width, device=boxes.device) - cell[..., 0:1]
    down = torch.arange(height, device=boxes.device) - cell[..., 1:2]
    squared = across[..., None, :].square() + down[..., :, None].square()
    peak = (-squared / (2 * sigma.square())[..., None, None]).exp() * is_box[..., None, None]  # [B,N,h,w]
    kind = boxes[..., 4].long().clamp_min(0)[..., None, None].expand_as(peak)
    heat = peak.new_zeros(batch, classes, height, width).scatter_reduce(1, kind, peak, "amax")
    reached = (peak > MIN_SIZE_HEAT)[:, :, None] * extent[..., None, None]
    around = torch.cat([reached, peak.new_zeros(batch, 1, 2, height, width)], 1).amax(1)

    flat = (cell[..., 1] * width + cell[..., 0]).long()
    index = torch.where(is_box, flat, height * width)  # rows that are no boxes go to an extra cell, cut off below
    values = torch.cat([extent, center - cell], dim=-1).transpose(1, 2)  # [B,4,N]
    maps = values.new_zeros(batch, 4, height * width + 1).scatter(2, index[:, None].expand(-1, 4, -1), values)
    here = torch.zeros(batch, height * width + 1, dtype=torch.bool, device=boxes.device).scatter(1, index, True)
    maps, here = maps[..., :-1].unflatten(2, grid), here[:, :-1].unflatten(1, grid)
    return CenterMaps(heat, maps[:, :2], maps[:, 2:], here[:, None], around)


def _radius(extent: Tensor) -> Tensor:
    """`[B,N,2]` width and height in cells -> `[B,N]` largest shift in x and y that keeps an IoU of `MIN_SHIFTED_IOU`.

    A shift of r leaves an intersection I = (w-r)(h-r) with I = IoU * (2wh - I), hence I = 2 IoU / (1 + IoU) * wh; r is
    the smaller root.
    """
    width, height = extent.unbind(-1)
    kept = 2 * MIN_SHIFTED_IOU / (1 + MIN_SHIFTED_IOU)
    total = width + height
    return (total - (total.square() - 4 * (1 - kept) * width * height).clamp_min(0).sqrt()) / 2


def decode(heat: Tensor, size: Tensor, offset: Tensor, most: int = MAX_BOXES) -> Tensor:
    """Center maps -> `[B,most,6]`: x0, y0, x1, y1 as fractions of the image's sides, class, score; highest score first.

    A center is a cell with at least the heat of its eight neighbors and more than `MIN_CENTER_HEAT`. Rows beyond the
    last box have score 0.

    Args:
        heat: `[B,K,h,w]` in 0 to 1.
        size: `[B,2,h,w]` width and height as fractions of the image's sides.
        offset: `[B,2,h,w]` x and y in the cell.
        most: largest number of boxes.
    """
    batch, classes, height, width = heat.shape
    peak = heat * (heat == F.max_pool2d(heat, 3, 1, 1)) * (heat > MIN_CENTER_HEAT)
    score, flat = peak.flatten(1).topk(min(most, classes * height * width), dim=1)
    kind, cell = flat // (height * width), flat % (height * width)
    values = torch.cat([size, offset], 1).flatten(2).gather(2, cell[:, None].expand(-1, 4, -1))
    wide, high, right, down = values.unbind(1)
    x, y = (cell % width + right) / width, (cell // width + down) / height
    corners = torch.stack([x - wide / 2, y - high / 2, x + wide / 2, y + high / 2], dim=-1).clamp(0, 1)
    found = torch.cat([corners, kind[..., None].to(corners), score[..., None]], dim=-1)
    return F.pad(found, (0, 0, 0, most - found.shape[1])) if found.shape[1] < most else found


def decode_canvas(canvas: Tensor, most: int = MAX_BOXES) -> Tensor:
    """Maps of a canvas `[B,K+2,h,w]` -> boxes, as `decode` returns them; a center is in the middle of its cell."""
    heat, size = canvas[:, :-2], canvas[:, -2:]
    hottest = heat.amax(1, keepdim=True).clamp_min(1e-6)
    return decode(heat, size / hottest, torch.full_like(size, 0.5), most)


def confident(boxes: Tensor) -> Tensor:
    """Predicted or generated boxes `[B,N,6]` as true boxes `[B,N,5]`; those of a low score get the class -1: none."""
    label = boxes[..., 4].where(boxes[..., 5] >= CONFIDENT_SCORE, -1)
    return torch.cat([boxes[..., :4], label[..., None]], -1)


def sharpen(canvas: Tensor) -> Tensor:
    """Generated maps `[B,K+2,h,w]` -> those of the confident boxes in them, as a real sample's maps look."""
    return encode(confident(decode_canvas(canvas)), canvas.shape[1] - 2, (canvas.shape[2], canvas.shape[3])).canvas()


def focal(logits: Tensor, target: CenterMaps, alpha: float = 2.0, beta: float = 4.0) -> Tensor:
    """Penalty-reduced focal loss, summed over classes and cells: `[B]`. Source: Law and Deng 2018, eq. 1."""
    probability, heat = logits.sigmoid(), target.heat
    center = heat == 1
    at_centers = -(1 - probability).pow(alpha) * F.logsigmoid(logits) * center
    elsewhere = -(1 - heat).pow(beta) * probability.pow(alpha) * F.logsigmoid(-logits) * ~center
    return (at_centers + elsewhere).sum((1, 2, 3))
