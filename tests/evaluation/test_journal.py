"""The names of an evaluation's numbers in a run's journal, and which values of each are better."""

from contextlib import closing
from pathlib import Path

import pytest
from helpers.made_models import made, saved

from mtgen.config import validate
from mtgen.data.mixture import open_samples
from mtgen.evaluation.metric import METRICS, better, journal_name
from mtgen.evaluation.reference import classifier
from mtgen.evaluation.run import EvaluationOptions, evaluate_run
from mtgen.models.model import Model, build
from mtgen.shards.make import make
from mtgen.tracking.journal import Journal, read_journal

LOWER = {
    "distribution/fd_NAME",
    "distribution/fid",
    "distribution/kd_NAME",
    "distribution/kid",
    "distribution/memorised_NAME",
    "test/reconstruction_features_NAME",
}
NEITHER = {
    *(
        "generated/diversity",
        "generated/diversity_worst",
        "generated/spread",
        "distribution/memorisation_NAME",
    ),  # 1 is best
    *("real/cas", "real/miou", "real/ap50", "real/ap"),  # of the data, not of the run
}
TAGS = {"dataset.name": "digits", "dataset.fingerprint": "5eed"}
"""What a start says of the data."""


def test_every_number_of_every_metric_has_its_own_journal_name() -> None:
    names = [journal_name(number) for name in METRICS for number in METRICS[name].numbers]
    assert len(set(names)) == len(names) >= len(METRICS.names())


def test_every_metric_declares_which_values_are_better() -> None:
    said = {number: value for name in METRICS for number, value in METRICS[name].numbers.items()}
    assert all(METRICS[name].numbers for name in METRICS)
    assert {number for number, value in said.items() if value == "lower"} == LOWER
    assert {number for number, value in said.items() if value is None} == NEITHER


@pytest.mark.parametrize(
    ("number", "value"),
    [
        ("evaluation/fd_small_cnn", "lower"),
        ("evaluation/fid", "lower"),
        ("evaluation/memorised_dinov2", "lower"),
        ("evaluation/memorisation_dinov2", None),
        ("evaluation/reconstruction_features_small_cnn", "lower"),
        ("evaluation/precision_small_cnn", "higher"),
        ("evaluation/class", "higher"),
        ("evaluation/cas", "higher"),
        ("evaluation/real_cas", None),
        ("test/box_ap", "higher"),
        ("val/box_ap", "higher"),
        ("generated/diversity", None),
        ("evaluation/fd_small_cnn/nonfinite", None),
        ("evaluation/unheard_of", None),
    ],
)
def test_the_metric_of_a_number_in_a_journal_is_found(number: str, value: str | None) -> None:
    assert better(number) == value


@pytest.mark.timeout(300)
def test_the_scores_of_real_images_have_other_journal_names_than_the_runs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier, "CLASSIFIER_TRAIN_IMAGES", 10 * classifier.CLASSIFIER_BATCH_SIZE)
    make("digits", tmp_path / "digits", train=120, test=40, style="gray")
    data = {"path": str(tmp_path / "digits"), "channels": "gray"}
    values = made(tasks=("generation",), conditions=("class",)).config.model_dump(mode="json")
    config = validate({**values, "name": "run", "runs": str(tmp_path), "data": data})
    card = open_samples(config.data, "test").card
    folder = saved(Model(build(config, card), config, card), tmp_path / "run")
    with closing(Journal(folder)) as journal:
        journal.append(0, start={"id": "1", "name": "run", "config": config.to_yaml(), "tags": TAGS})
    options = EvaluationOptions(samples=120, device="cpu", metrics=("generated/cas", "real/cas"))
    report = evaluate_run(folder, options)
    *_, row = read_journal(folder)
    assert row.values == {"evaluation/cas": report["generated/cas"], "evaluation/real_cas": report["real/cas"]}
