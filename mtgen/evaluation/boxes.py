"""Average precision of boxes, by COCO's formula."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtgen.evaluation.skipped import Skipped

SIDE = 1000.0
"""Boxes are shares of an image's sides; the formula wants pixels. Overlaps do not depend on it."""


class BoxPrecision:
    """Collects true and found boxes, 24 bytes each, and computes COCO's AP (Lin et al. 2014) with faster-coco-eval."""

    def __init__(self) -> None:
        self.images = 0
        self.true: list[NDArray[np.float64]] = []
        self.found: list[NDArray[np.float64]] = []

    def update(self, true: Tensor, found: Tensor) -> None:
        """Take in `[B,N,5]` true boxes (x0, y0, x1, y1, class; class -1: none) and `[B,M,6]` found ones (with a score; 0: none)."""
        for rows, there, kept in ((true, true[..., 4] >= 0, self.true), (found, found[..., 5] > 0, self.found)):
            image = torch.arange(self.images, self.images + len(rows))[:, None].expand(there.shape)
            flat = torch.cat([image[there.cpu()][:, None].double(), rows[there].cpu().double()], 1)
            kept.append(flat.numpy().reshape(-1, 1 + rows.shape[-1]).astype(np.float32))
        self.images += len(true)

    @property
    def boxes(self) -> int:
        """True boxes so far."""
        return sum(map(len, self.true))

    def compute(self) -> tuple[float, float]:
        """AP at an overlap of 0.5, and AP (the mean over 0.5, 0.55, ... 0.95), each averaged over the classes with a true box; 0 where
        nothing was found.

        Raises:
            Skipped: the library is missing; an evaluation while a run trains should not end it.
        """
        true, found = np.concatenate(self.true).astype(float), np.concatenate(self.found).astype(float)
        if not len(found):
            return 0.0, 0.0
        try:
            from faster_coco_eval import COCO, COCOeval_faster
        except ModuleNotFoundError:
            raise Skipped("the package faster-coco-eval is not installed; pip install faster-coco-eval") from None

        def annotation(number: int, row: NDArray[np.float64]) -> dict[str, object]:
            x0, y0, x1, y1 = (row[1:5] * SIDE).tolist()
            box = {"image_id": int(row[0]), "category_id": int(row[5]), "bbox": [x0, y0, x1 - x0, y1 - y0]}
            return {"id": number, "area": (x1 - x0) * (y1 - y0), "iscrowd": 0, **box}

        truth = COCO()
        truth.dataset = {
            "images": [{"id": i, "width": int(SIDE), "height": int(SIDE)} for i in range(self.images)],
            "annotations": [annotation(number, row) for number, row in enumerate(true, 1)],
            "categories": [{"id": int(k), "name": str(int(k))} for k in np.unique(np.concatenate([true[:, 5], found[:, 5]]))],
        }
        truth.createIndex()
        results = truth.loadRes([annotation(number, row) | {"score": float(row[6])} for number, row in enumerate(found, 1)])
        coco = COCOeval_faster(truth, results, iouType="bbox")
        coco.evaluate()
        coco.accumulate()
        precision = coco.eval["precision"][:, :, :, 0, -1]  # overlaps, recalls, classes; boxes of any size, as many as there are
        return _mean(precision[0]), _mean(precision)


def _mean(precision: NDArray[np.float64]) -> float:
    """Over what there is: -1 stands for a class without true boxes."""
    return float(precision[precision > -1].mean())
