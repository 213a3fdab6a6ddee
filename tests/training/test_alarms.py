"""Real runs that fail on purpose raise their alarm once, in the log, the report and MLflow; a good run raises none."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import toy
from helpers.made_once import made_once
from mlflow import MlflowClient

from mtgen.alarms import read_alarms
from mtgen.launchers.driver import launch
from mtgen.report import REPORT_FILE
from mtgen.shards.make import make
from mtgen.storage.tracking_store import store_uri
from mtgen.tracking.run_log import LOG_FILE

FROZEN_GENERATOR = {"generator": {"learning_rate": 1e-9}}
RUNS: dict[str, dict[str, Any]] = {
    "healthy": {"train": {"images": 960}, "evaluate": {"every": 480}},
    "collapsed": FROZEN_GENERATOR,  # an untrained generator hardly depends on its latent
    "diverged": {"generator": {"learning_rate": 3.0}, "discriminator": {"learning_rate": 3.0}},
    "saturated": {
        **FROZEN_GENERATOR,
        "discriminator": {"learning_rate": 5e-3},
        "tasks": {"generation": {"gamma": 0.0}},
    },
    "stalled": {
        "discriminator": {"learning_rate": 1e-9},
        "tasks": {"generation": {"weight": 0.0}},
        "train": {"images": 1600, "log_every": 400},  # the whole data set
        "evaluate": {"every": 800},
    },
}


def train(config: Any) -> None:
    launch(config, watch=lambda *_: None, say=print)


def train_all(data_and_runs: str) -> None:
    """Train all runs; the collapsed one then resumes from before its alarm, whose row is cut from its journal."""
    folder = Path(data_and_runs)
    for name, changes in RUNS.items():
        train(toy.small_run(folder, name, **changes))
    run = folder / "runs" / "collapsed"
    for late in sorted((run / "checkpoints").iterdir())[1:]:  # the checkpoint of 160 images is kept
        shutil.rmtree(late)
    train(toy.small_run(folder, "collapsed", **RUNS["collapsed"], train={"images": 800}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def train_in(folder: Path) -> None:
        make("shapes", folder / "data", resolution=16, train=400, val=100, test=10)
        (folder / "data" / "test-000000.tar").unlink()  # training does not read it
        toy.spawn(1, train_all, folder, str(folder))

    return made_once(tmp_path_factory, "alarms", train_in) / "runs"


def kinds(run: Path) -> set[str]:
    return {alarm.kind for alarm in read_alarms(run)}


def test_a_good_run_raises_no_alarm(runs: Path) -> None:
    assert (runs / "healthy" / "checkpoints" / f"{960:012d}").is_dir()
    assert not (runs / "healthy" / "alarms.jsonl").exists()


def test_a_generator_that_ignores_its_latent_raises_collapse(runs: Path) -> None:
    assert "collapse" in kinds(runs / "collapsed")


def test_far_too_high_learning_rates_raise_divergence_before_they_end_the_run(runs: Path) -> None:
    assert json.loads((runs / "diverged" / "outcome.json").read_text())["status"] == "failed"
    assert {"losses that explode", "steps left out"} <= {alarm.about for alarm in read_alarms(runs / "diverged")}


def test_a_discriminator_without_penalties_against_a_frozen_generator_raises_saturation(runs: Path) -> None:
    assert "saturation" in kinds(runs / "saturated")
    assert "saturation" not in kinds(runs / "collapsed")


def test_a_task_that_never_learns_is_named(runs: Path) -> None:
    (alarm,) = [alarm for alarm in read_alarms(runs / "stalled") if alarm.kind == "stalled"]
    assert (
        alarm.about == "classification"
        and "val/class_accuracy is 0." in alarm.what
        and "tasks.classification.weight" in alarm.help
    )


def test_a_resume_from_before_an_alarm_does_not_raise_it_again(runs: Path) -> None:
    log = (runs / "collapsed" / LOG_FILE).read_text()
    assert "resumes from 160 images" in log
    assert [alarm.images for alarm in read_alarms(runs / "collapsed") if alarm.kind == "collapse"] == [640]
    assert log.count("alarm: collapse") == 1


def test_an_alarm_is_in_the_log_the_report_and_mlflow(runs: Path) -> None:
    (alarm,) = [alarm for alarm in read_alarms(runs / "collapsed") if alarm.kind == "collapse"]
    assert f"  alarm: {alarm}" in (runs / "collapsed" / LOG_FILE).read_text()
    assert "collapse at 640 images: images of a class vary" in (runs / "collapsed" / REPORT_FILE).read_text()
    client = MlflowClient(store_uri(runs))
    (run,) = client.search_runs(
        [e.experiment_id for e in client.search_experiments()], "attributes.run_name = 'collapsed'"
    )
    assert run.data.tags["alarm.collapse"] == str(alarm)
    assert "alarm collapse: collapse at 640 images" in run.data.tags["mlflow.note.content"]
    assert Path(client.download_artifacts(run.info.run_id, "alarms.jsonl")).read_text().splitlines() == (
        (runs / "collapsed" / "alarms.jsonl").read_text().splitlines()
    )


def test_the_log_of_a_run_describes_the_run_and_what_happened(runs: Path) -> None:
    log = (runs / "healthy" / LOG_FILE).read_text()
    for part in (
        "(mtgen 0.",
        "healthy begins, to 960 images",
        "400 samples of split train (400 with class, 400 with mask)",
        "1 x cpu",
        "640/960 images",
        "img/s",
        "evaluation at 480 images",
        "class accuracy 0.",
        "checkpoint of 480 images is complete",
        "finished at 960 images",
    ):
        assert part in log, part
    assert "\x1b" not in log
    assert "failed at " in (runs / "diverged" / LOG_FILE).read_text().splitlines()[-1]


def test_the_first_batch_is_a_picture_and_in_the_report(runs: Path) -> None:
    (picture,) = (runs / "healthy" / "samples").glob("batch-0*.png")
    assert picture.stat().st_size > 1000
    assert "as the network sees them" in (runs / "healthy" / REPORT_FILE).read_text()
