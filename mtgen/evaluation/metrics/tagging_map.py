"""Multi-label classification of real test images."""

import torch
from torch import Tensor

from mtgen.evaluation.base import MetricContext, Skipped, Stream, required_classes, required_logits
from mtgen.evaluation.collectors.row_buffer import RowBuffer
from mtgen.evaluation.metric import METRICS, Metric
from mtgen.schema import Batch, Prediction


def average_precision(score: Tensor, true: Tensor) -> float:
    """`[N]` scores, `[N]` bool -> mean of the precision over recalls; equal scores count as one threshold."""
    order = score.argsort(descending=True)
    score, true = score[order], true[order].double()
    correct, seen = true.cumsum(0), torch.arange(1, len(score) + 1)
    last = torch.cat([score[1:] != score[:-1], torch.ones(1, dtype=torch.bool)])
    correct, precision = correct[last], (correct / seen)[last]
    return float((torch.diff(correct, prepend=correct.new_zeros(1)) * precision).sum() / correct[-1])


@METRICS.register("test/tagging_map")
class TaggingMAP(Metric):
    """Average precision of each class's logit over the test images, averaged over the classes that occur in them.

    Holds one number per image and class. Source: Everingham et al. 2010, without interpolation.
    """

    numbers = {"test/tagging_map": "higher"}
    streams = (Stream.TEST,)

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        required_classes(context.card)
        self.rows = self.add_state("rows", RowBuffer())

    def update_test(self, batch: Batch, prediction: Prediction) -> None:
        logits = required_logits(prediction.label_logits, "the labels of images")
        if batch.labels is not None:
            known = batch.present["tags"]
            self.rows.append(logits[known].float(), batch.labels[known])

    def compute(self) -> dict[str, float]:
        if not len(self.rows):
            raise Skipped("no test image has labels")
        score, true = self.rows.columns()
        classes = true.any(0).nonzero().flatten().tolist()
        if not classes:
            raise Skipped("no test image has labels")
        return {"test/tagging_map": sum(average_precision(score[:, k], true[:, k]) for k in classes) / len(classes)}
