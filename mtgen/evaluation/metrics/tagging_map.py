"""How well the model tells which classes are in a real test image."""

import torch
from torch import Tensor

from mtgen.evaluation.metric import METRICS, Metric, MetricContext, Skipped, required_classes, required_logits
from mtgen.schema import Batch, Canvas, Prediction


def average_precision(score: Tensor, true: Tensor) -> float:
    """`[N]` scores, `[N]` bool -> the mean over recalls of the precision reached with them; equal scores are taken together."""
    order = score.argsort(descending=True)
    score, true = score[order], true[order].double()
    right, seen = true.cumsum(0), torch.arange(1, len(score) + 1)
    last = torch.cat([score[1:] != score[:-1], torch.ones(1, dtype=torch.bool)])
    right, precision = right[last], (right / seen)[last]
    return float((torch.diff(right, prepend=right.new_zeros(1)) * precision).sum() / right[-1])


@METRICS.register("test/tagging_map")
class TaggingMAP(Metric):
    """Average precision of each class's logit over the test images, averaged over the classes that are in any of them.

    Holds a number for each image and class, no images. Source: Everingham et al. 2010, without interpolation.
    """

    numbers = {"test/tagging_map": "higher"}

    def __init__(self, setting: MetricContext) -> None:
        super().__init__(setting)
        required_classes(setting.card)
        self.score: list[Tensor] = []
        self.true: list[Tensor] = []

    def update_real(self, batch: Batch, prediction: Prediction, reconstruction: Canvas | None) -> None:
        logits = required_logits(prediction.label_logits, "the classes of whole images")
        if batch.labels is not None:
            known = batch.present["boxes"]
            self.score.append(logits[known].float().cpu())
            self.true.append(batch.labels[known].cpu())

    def compute(self) -> dict[str, float]:
        true = torch.cat(self.true) if self.true else torch.zeros(0, 1, dtype=torch.bool)
        there = true.any(0).nonzero().flatten().tolist()
        if not there:
            raise Skipped("no test image carries its classes")
        score = torch.cat(self.score)
        return {"test/tagging_map": sum(average_precision(score[:, k], true[:, k]) for k in there) / len(there)}
