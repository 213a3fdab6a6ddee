"""How well the model reads every class that is in a real test image."""

import torch
from torch import Tensor

from mtgen.evaluation.metric import METRICS, Metric, Setting, Skipped, required_classes, required_logits
from mtgen.schema import Batch, Canvas, Prediction


def average_precision(score: Tensor, true: Tensor) -> float:
    """`[N]` scores and `[N]` bool -> the sum over thresholds of the rise of recall times precision; equal scores share a threshold."""
    order = score.argsort(descending=True)
    score, hits = score[order], true[order].double().cumsum(0)
    ends = torch.cat([score[1:] != score[:-1], torch.ones(1, dtype=torch.bool)]).nonzero()[:, 0]
    precision, recall = hits[ends] / (ends + 1), hits[ends] / hits[-1]
    return float((precision * recall.diff(prepend=recall.new_zeros(1))).sum())


@METRICS.register("test/tagging_map")
class TaggingMAP(Metric):
    """Average precision of each class over the test images with known labels, averaged over the classes that occur; 5 K bytes an image."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        required_classes(setting.card)
        self.score: list[Tensor] = []
        self.true: list[Tensor] = []

    def update_real(self, batch: Batch, prediction: Prediction, reconstruction: Canvas | None) -> None:
        logits = required_logits(prediction.label_logits, "several classes an image")
        if batch.labels is None:
            raise Skipped("the test split carries no labels")
        rows = batch.present["boxes"]
        self.score.append(logits[rows].float().cpu())
        self.true.append(batch.labels[rows].cpu())

    def compute(self) -> dict[str, float]:
        true = torch.cat(self.true) if self.true else torch.zeros(0, 1, dtype=torch.bool)
        if not true.any():
            raise Skipped("no test image carries a label")
        score = torch.cat(self.score)
        each = [average_precision(score[:, k], true[:, k]) for k in range(true.shape[1]) if true[:, k].any()]
        return {"test/tagging_map": sum(each) / len(each)}
