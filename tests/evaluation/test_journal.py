"""What numbers of an evaluation are called in a run's journal."""

from contextlib import closing
from pathlib import Path

import pytest
from made_models import made, saved

from mtgen.config import validate
from mtgen.data.mixture import open_samples
from mtgen.evaluation import classifier
from mtgen.evaluation.metric import METRICS, evaluated
from mtgen.journal import Journal, read_journal
from mtgen.model import Model, build
from mtgen.shards.make import make
from mtgen.snapshot import evaluate_run

TAGS = {"dataset.name": "digits", "dataset.fingerprint": "5eed"}
"""What a start says of the data."""


def test_no_two_metrics_have_one_name() -> None:
    names = [evaluated(name) for name in METRICS]
    assert len(set(names)) == len(names)


@pytest.mark.timeout(300)
def test_what_real_images_would_reach_is_not_taken_for_the_runs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "IMAGES", 10 * classifier.BATCH)
    make("digits", tmp_path / "digits", train=120, test=40, style="grey")
    data = {"path": str(tmp_path / "digits"), "channels": "grey"}
    values = made(tasks=("generation",), conditions=("class",)).config.model_dump(mode="json")
    config = validate({**values, "name": "run", "runs": str(tmp_path), "data": data})
    card = open_samples(config.data, "test").card
    folder = saved(Model(build(config, card), config, card), tmp_path / "run")
    with closing(Journal(folder)) as journal:
        journal.append(0, start={"id": "1", "name": "run", "config": config.to_yaml(), "tags": TAGS})
    report = evaluate_run(folder, None, 120, 0, "cpu", lambda *_: None, ["generated/cas", "real/cas"])
    *_, row = read_journal(folder)
    assert row.values == {"evaluation/cas": report["generated/cas"], "evaluation/real_cas": report["real/cas"]}
