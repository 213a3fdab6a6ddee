"""Train and evaluate one run of a study (see `study_runner.py`); the last line of the output is JSON."""

import argparse
import json
from pathlib import Path

from mtgen.config import Config, load
from mtgen.data.mixture import open_samples
from mtgen.errors import UserError
from mtgen.evaluation.evaluate import evaluate
from mtgen.evaluation.splits import SplitBatches
from mtgen.launchers.ray_workers import run_here
from mtgen.models.loading import load_run

METRIC_BY_TASK = {
    "classification": "test/class_accuracy",
    "tagging": "test/tagging_map",
    "segmentation": "test/mask_miou",
    "detection": "test/box_ap50",
}
GENERATION_METRICS = ["generated/cas", "generated/diversity"]


def evaluate_run(config: Config, samples: int) -> dict[str, float]:
    """Evaluate a run on the test split.

    Returns:
        Those of `classification`, `tagging`, `segmentation`, `detection`, `cas` and `diversity` that its tasks have.
    """
    model, _ = load_run(config.folder, "cpu")
    test, train = open_samples(config.data, "test"), open_samples(config.data, "train")
    tasks = config.task_settings()
    names = {name: metric for name, metric in METRIC_BY_TASK.items() if name in tasks}
    names |= {metric.rpartition("/")[2]: metric for metric in GENERATION_METRICS if "generation" in tasks}
    report = evaluate(
        model,
        SplitBatches(config, test),
        SplitBatches(config, train),
        samples=samples,
        seed=0,
        metrics=list(names.values()),
    )
    return {name: report[metric] for name, metric in names.items() if metric in report}


def main() -> None:
    """Train a run, resuming from its last checkpoint if there is one, and print its metrics."""
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
    print(json.dumps(evaluate_run(config, arguments.samples)))


if __name__ == "__main__":
    main()
