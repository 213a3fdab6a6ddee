"""Average precision of boxes, by COCO's definition."""

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor

from mtgen.evaluation.base import Skipped
from mtgen.evaluation.collectors.base import State

COCO_IMAGE_SIDE = 1000.0
"""Side of an image in COCO's pixels; it would matter for COCO's size classes only, which are not used."""


class BoxAveragePrecision:
    """True and predicted boxes of any number of images; holds the boxes, never the images."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.true: list[Tensor] = []
        self.predicted: list[Tensor] = []
        self.images = 0

    def update(self, true: Tensor, predicted: Tensor) -> None:
        """Take in `[B,N,5]` true boxes (class -1: padding) and `[B,M,6]` predicted ones (score 0: padding)."""
        self.true.append(self._rows(true, true[..., 4] >= 0))
        self.predicted.append(self._rows(predicted, predicted[..., 5] > 0))
        self.images += len(true)

    def _rows(self, boxes: Tensor, valid: Tensor) -> Tensor:
        """`[B,N,k]` -> the valid boxes `[n,1+k]` float64, each after the number of its image."""
        image, row = valid.nonzero(as_tuple=True)
        return torch.cat([self.images + image[:, None], boxes[image, row]], 1).double().cpu()

    def compute(self) -> tuple[float, float]:
        """AP at an IoU of 0.5, and its mean over IoUs of 0.5, 0.55 ... 0.95.

        Both are means over the classes that have true boxes. Source: Lin et al. 2014 (COCO): precision at 101 recalls,
        at most the 100 most confident boxes of an image.

        Raises:
            Skipped: there is no true box.
        """
        true = torch.cat(self.true) if self.true else torch.zeros(0, 6)
        if not len(true):
            raise Skipped("there is no true box to detect")
        predicted = torch.cat(self.predicted)
        if not len(predicted):
            return 0.0, 0.0
        truth = COCO()
        truth.dataset = {
            "images": [{"id": n + 1, "width": COCO_IMAGE_SIDE, "height": COCO_IMAGE_SIDE} for n in range(self.images)],
            "categories": [{"id": k, "name": str(k)} for k in range(self.classes)],
            "annotations": [{**box, "iscrowd": 0} for box in _coco_boxes(true)],
        }
        truth.createIndex()
        scored = zip(_coco_boxes(predicted), predicted, strict=True)
        results = truth.loadRes([{**box, "score": float(row[6])} for box, row in scored])
        evaluation = COCOeval_faster(truth, results, "bbox", print_function=lambda *_: None)
        evaluation.evaluate()
        evaluation.accumulate()
        precision = np.asarray(evaluation.eval["precision"])[..., 0, -1]  # [IoUs, recalls, classes], of all sizes
        known = precision[0, 0] > -1
        return float(precision[0][:, known].mean()), float(precision[..., known].mean())

    def state_dict(self) -> State:
        """The boxes and the number of images."""
        return {"true": self.true, "predicted": self.predicted, "images": self.images}

    def load_state_dict(self, state: State) -> None:
        """Restore the boxes and the number of images."""
        self.true = state["true"]
        self.predicted = state["predicted"]
        self.images = state["images"]


def _coco_boxes(rows: Tensor) -> list[dict[str, object]]:
    """`[n,6+]` image, x0, y0, x1, y1, class, ... -> boxes in COCO's form; ids start at 1, since 0 means none."""
    boxes = []
    for number, row in enumerate(rows.tolist()):
        x0, y0, x1, y1 = (COCO_IMAGE_SIDE * side for side in row[1:5])
        width, height = x1 - x0, y1 - y0
        boxes.append(
            {
                "id": number + 1,
                "image_id": int(row[0]) + 1,
                "category_id": int(row[5]),
                "bbox": [x0, y0, width, height],
                "area": width * height,
            }
        )
    return boxes
