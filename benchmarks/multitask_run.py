"""One run of `multitask.py`, in a process of its own: train, then measure on the test split; the last line of the output is JSON."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtgen.config import Config, load
from mtgen.data.mixture import open_samples
from mtgen.errors import UserError
from mtgen.evaluation.metric import METRICS
from mtgen.evaluation.suite import evaluate
from mtgen.orchestrate import run_here
from mtgen.runs import load_run
from mtgen.snapshot import batches

READ = {"classification": "test/class_accuracy", "segmentation": "test/mask_miou"}
DRAWN = ["generated/cas", "generated/diversity"]


def overlap(box: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of `[4]` with `[n,4]`: `[n]`."""
    low, high = torch.maximum(box[:2], others[:, :2]), torch.minimum(box[2:4], others[:, 2:4])
    both = (high - low).clamp_min(0).prod(1)
    return both / ((box[2:4] - box[:2]).prod() + (others[:, 2:4] - others[:, :2]).prod(1) - both).clamp_min(1e-9)


def ap50(found: list[Tensor], true: list[Tensor], classes: int) -> float:
    """Mean over classes of the area under precision against recall, a box being right that overlaps its own by half, the surest first.

    Source: Everingham et al. 2010 (VOC), over all points.

    Args:
        found: for each image `[n,6]`: corners, class, score.
        true: for each image `[m,5]`: corners, class.
    """
    scores = []
    for kind in range(classes):
        wanted = [boxes[boxes[:, 4] == kind] for boxes in true]
        total = sum(map(len, wanted))
        rows = [(float(box[5]), image, box) for image, boxes in enumerate(found) for box in boxes[boxes[:, 4] == kind] if box[5] > 0]
        taken = [[False] * len(boxes) for boxes in wanted]
        hits = []
        for _, image, box in sorted(rows, key=lambda row: -row[0]):
            shares = overlap(box, wanted[image]) if len(wanted[image]) else torch.zeros(1)
            best = int(shares.argmax())
            hit = float(shares[best]) >= 0.5 and not taken[image][best]
            if hit:
                taken[image][best] = True
            hits.append(float(hit))
        if total:
            right = torch.tensor(hits).cumsum(0)
            precision = right / torch.arange(1, len(hits) + 1)
            highest = precision.flip(0).cummax(0).values.flip(0) if hits else precision
            scores.append(float((highest * torch.tensor(hits)).sum()) / total)
    return sum(scores) / len(scores)


def measured(config: Config, samples: int) -> dict[str, float]:
    """Every number that the run's tasks have, on the test split: `classification`, `segmentation`, `detection`, `cas`, `diversity`."""
    model, _ = load_run(config.folder, "cpu")
    test, train = open_samples(config.data, "test"), open_samples(config.data, "train")
    tasks = config.task_settings()
    boxes = next((name for name in METRICS if name.endswith("ap50")), None)
    names = {name: metric for name, metric in READ.items() if name in tasks}
    names |= {metric.rpartition("/")[2]: metric for metric in DRAWN if "generation" in tasks}
    if boxes is not None and "detection" in tasks:
        names["detection"] = boxes
    report = evaluate(model, batches(config, test), batches(config, train), samples=samples, seed=0, metrics=list(names.values()))
    numbers = {name: report[metric] for name, metric in names.items() if metric in report}
    if boxes is None and "detection" in tasks:
        found: list[Tensor] = []
        true: list[Tensor] = []
        for batch in batches(config, test):
            read = model.predict(batch.image).boxes
            assert read is not None and batch.boxes is not None
            for one, own, there in zip(read, batch.boxes, batch.present["boxes"], strict=True):
                if there:
                    found.append(one)
                    true.append(own)
        numbers["detection"] = ap50(found, true, len(model.card.classes))
    return numbers


def main() -> None:
    """Train what the arguments say, from its last checkpoint where there is one, and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--samples", type=int, required=True, help="images to generate for CAS and diversity")
    arguments = parser.parse_args()
    config = load(arguments.config, arguments.overrides)
    config.folder.mkdir(parents=True, exist_ok=True)
    outcome = run_here(config)
    if outcome.status != "finished":
        raise UserError(f"{config.name}: the training {outcome.status}: {outcome.message}")
    row: dict[str, Any] = measured(config, arguments.samples)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
