"""Average precision of boxes, by COCO's definition."""

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor

from mtgen.evaluation.metric import Skipped
from mtgen.visualization.grids import MIN_SHOWN_SCORE

_UNIT = 1000.0  # an image's side in COCO's pixels; its size classes, for which the size would matter, are not read


def confident_boxes(drawn: Tensor) -> Tensor:
    """`[B,N,6]` boxes that were drawn (see `mtgen.networks.center_maps.decode_canvas`) -> `[B,N,5]` true ones: a class of -1 where the score is low."""
    kind = drawn[..., 4].where(drawn[..., 5] >= MIN_SHOWN_SCORE, -1)
    return torch.cat([drawn[..., :4], kind[..., None]], -1)


class BoxPrecision:
    """Boxes of any number of images, true ones and read ones; holds the boxes, never images."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.true: list[Tensor] = []
        self.read: list[Tensor] = []
        self.images = 0

    def update(self, true: Tensor, read: Tensor) -> None:
        """`[B,N,5]` true boxes (class -1: none) and `[B,M,6]` read ones (score 0: none), see `mtgen.schema`."""
        for rows, kept, there in ((true, self.true, true[..., 4] >= 0), (read, self.read, read[..., 5] > 0)):
            image, row = there.nonzero(as_tuple=True)
            kept.append(torch.cat([self.images + image[:, None], rows[image, row]], 1).double().cpu())
        self.images += len(true)

    def compute(self) -> tuple[float, float]:
        """AP at an overlap of 0.5, and its mean over 0.5, 0.55 ... 0.95; both are means over the classes that have true boxes.

        Source: Lin et al. 2014 (COCO): precision at 101 recalls, at most the 100 surest boxes of an image.

        Raises:
            Skipped: there is no true box.
        """
        true = torch.cat(self.true) if self.true else torch.zeros(0, 6)
        if not len(true):
            raise Skipped("no box to be found")
        read = torch.cat(self.read)
        if not len(read):
            return 0.0, 0.0
        truth = COCO()
        truth.dataset = {
            "images": [{"id": n + 1, "width": _UNIT, "height": _UNIT} for n in range(self.images)],
            "categories": [{"id": k, "name": str(k)} for k in range(self.classes)],
            "annotations": [{**box, "iscrowd": 0} for box in _described(true)],
        }
        truth.createIndex()
        found = truth.loadRes(
            [{**box, "score": float(row[6])} for box, row in zip(_described(read), read, strict=True)]
        )
        evaluation = COCOeval_faster(truth, found, "bbox", print_function=lambda *_: None)
        evaluation.evaluate()
        evaluation.accumulate()
        precision = np.asarray(evaluation.eval["precision"])[..., 0, -1]  # [overlaps, recalls, classes], of any size
        known = precision[0, 0] > -1
        return float(precision[0][:, known].mean()), float(precision[..., known].mean())


def _described(rows: Tensor) -> list[dict[str, object]]:
    """`[n,6+]` image, x0, y0, x1, y1, class, ... -> boxes as COCO has them; numbers from 1, 0 stands for none in its code."""
    described = []
    for number, row in enumerate(rows.tolist()):
        x0, y0, x1, y1 = (_UNIT * side for side in row[1:5])
        wide, high = x1 - x0, y1 - y0
        described.append(
            {
                "id": number + 1,
                "image_id": int(row[0]) + 1,
                "category_id": int(row[5]),
                "bbox": [x0, y0, wide, high],
                "area": wide * high,
            }
        )
    return described
