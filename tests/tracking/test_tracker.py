"""Runs in real MLflow stores: complete, without duplicates, in order, and training never waits."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from helpers.mlflow_runs import (
    FINGERPRINT,
    REPOSITORY,
    configuration,
    losses,
    sender_of,
    steps,
    the_run,
    tracker,
    until,
)
from mlflow import MlflowClient

import mtgen
from mtgen.errors import ConfigError, UserError
from mtgen.storage.tracking_store import store_uri
from mtgen.tracking.journal import Journal, read_journal
from mtgen.tracking.mlflow_sender import pending_rows
from mtgen.tracking.tracker import send_pending

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(autouse=True)
def _no_store_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one finished run, for several tests."""
    runs = tmp_path_factory.mktemp("finished")
    config = configuration(runs, address="x" * 100_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)  # the autouse fixture has not run yet
        tracking = tracker(config)
        losses(tracking, 2_000, 4_000)
        tracking.row(4_000, {"test/accuracy": 0.5, "/odd//name (mean)": 1.0, "y" * 300: 2.0, "..": 3.0})
        tracking.row(5_000, {"loss/d": float("nan"), "loss/g": 0.5})
        picture = config.folder / "samples" / "6000-grid.png"
        picture.parent.mkdir()
        picture.write_bytes(b"a picture")
        tracking.artifact(6_000, config.folder / "samples" / "gone.png", "samples")
        tracking.artifact(6_000, picture, "samples")
        losses(tracking, 6_000)
        assert tracking.finish(6_000, timeout=100.0) == 0
    return runs


def artifact(runs: Path, name: str) -> bytes:
    client, run = the_run(runs)
    return Path(client.download_artifacts(run.info.run_id, name)).read_bytes()


def test_a_finished_run_has_its_numbers_against_images_seen(finished: Path) -> None:
    assert steps(finished) == [2_000, 4_000, 6_000]


def test_a_finished_run_is_finished_and_has_its_name(finished: Path) -> None:
    _, run = the_run(finished)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")


def test_the_configuration_is_there_as_params_and_as_a_file(finished: Path) -> None:
    _, run = the_run(finished)
    assert run.data.params["data.path"] == "digits" and run.data.params["generator.widths"] == "[96, 80, 64, 32]"
    assert artifact(finished, "config.yaml").decode() == configuration(finished, address="x" * 100_000).to_yaml()


def test_a_value_of_a_hundred_thousand_characters_is_cut_as_a_param(finished: Path) -> None:
    assert the_run(finished)[1].data.params["address"] == "x" * 5_999 + "…"


def test_the_data_set_is_named_with_its_fingerprint(finished: Path) -> None:
    _, run = the_run(finished)
    assert run.data.tags["dataset.name"] == "digits" and run.data.tags["dataset.fingerprint"] == FINGERPRINT
    assert run.inputs and [given.dataset.name for given in run.inputs.dataset_inputs] == ["digits"]


def test_the_version_and_the_folder_are_named(finished: Path) -> None:
    tags = the_run(finished)[1].data.tags
    assert tags["mtgen.version"] == mtgen.__version__ and tags["mtgen.folder"] == str(finished / "run")


def test_a_run_from_a_checkout_names_its_commit(finished: Path) -> None:
    head = subprocess.run(
        ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    if head.returncode:
        pytest.skip("these tests do not run from a git checkout")
    tags = the_run(finished)[1].data.tags
    assert tags["mlflow.source.git.commit"] == head.stdout.strip() and tags["git.dirty"] in ("true", "false")


def test_artifacts_are_next_to_the_database_and_a_missing_one_does_not_delay_them(finished: Path) -> None:
    assert artifact(finished, "samples/6000-grid.png") == b"a picture"
    assert [path.read_bytes() for path in (finished / "mlartifacts").rglob("*.png")] == [b"a picture"]


def test_numbers_that_are_not_finite_are_counted_and_the_others_kept(finished: Path) -> None:
    assert steps(finished, key="loss/d/nonfinite") == [5_000] and steps(finished, key="loss/g") == [5_000]


def test_names_that_mlflow_rejects_are_changed(finished: Path) -> None:
    metrics = the_run(finished)[1].data.metrics
    assert {key: metrics.get(key) for key in ("odd/name _mean_", "y" * 250, "_")} == {
        "odd/name _mean_": 1.0,
        "y" * 250: 2.0,
        "_": 3.0,
    }


def test_the_first_row_at_a_position_has_the_systems_load(finished: Path) -> None:
    assert steps(finished, key="system/cpu_utilization_percentage") == [2_000, 4_000, 5_000, 6_000]
    assert [
        any(key.startswith("system/") for key in row.values)
        for row in read_journal(finished / "run")
        if row.images == 4_000
    ] == [
        True,
        False,
    ]


def test_two_rows_at_one_position_are_both_kept(tmp_path: Path) -> None:
    tracking = tracker(configuration(tmp_path))
    losses(tracking, 1_000)
    until(lambda: pending_rows(tmp_path / "run") == 0)
    tracking.row(1_000, {"test/accuracy": 0.5})
    assert tracking.finish(1_000, timeout=100.0) == 0
    assert steps(tmp_path) == [1_000] and steps(tmp_path, key="test/accuracy") == [1_000]


def test_a_resumed_run_continues_its_mlflow_run_without_duplicate_points(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    tracking = tracker(config)
    losses(tracking, 1_000, 2_000, 3_000, 4_000)
    assert tracking.finish(4_000, "KILLED", timeout=100.0) == 0
    assert the_run(tmp_path)[1].info.status == "KILLED"
    resumed = tracker(config, images=2_000)
    losses(resumed, 3_000, 4_000, 5_000)
    assert resumed.finish(5_000, timeout=100.0) == 0
    assert steps(tmp_path) == [1_000, 2_000, 3_000, 4_000, 5_000]
    assert the_run(tmp_path)[1].info.status == "FINISHED"
    assert [row.images for row in read_journal(config.folder) if row.values] == [1_000, 2_000, 3_000, 4_000, 5_000]


def test_new_metrics_of_a_resumed_run_are_sent_although_the_journal_was_cut(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    tracking = tracker(config)
    losses(tracking, *range(1, 51))
    assert tracking.finish(50, "KILLED", timeout=100.0) == 0
    resumed = tracker(config, images=1)
    resumed.row(2, {"test/accuracy": 0.5})
    assert resumed.finish(2, timeout=100.0) == 0
    assert steps(tmp_path, key="test/accuracy") == [2]


def test_a_picture_repeated_by_a_resumed_run_replaces_the_first(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    picture = config.folder / "2000.png"
    for images, content in ((0, b"first"), (1_000, b"second")):
        tracking = tracker(config, images)
        picture.write_bytes(content)
        tracking.artifact(2_000, picture)
        assert tracking.finish(2_000, timeout=100.0) == 0
    client, run = the_run(tmp_path)
    assert Path(client.download_artifacts(run.info.run_id, "2000.png")).read_bytes() == b"second"


def test_a_configuration_changed_by_a_resume_becomes_tags(tmp_path: Path) -> None:
    assert tracker(configuration(tmp_path)).finish(0, timeout=100.0) == 0
    longer = configuration(tmp_path, train={"images": 300_000})
    assert tracker(longer).finish(0, timeout=100.0) == 0
    client, run = the_run(tmp_path)
    assert run.data.params["train.images"] == "200000" and run.data.tags["resumed.train.images"] == "300000"
    assert Path(client.download_artifacts(run.info.run_id, "config.yaml")).read_text() == longer.to_yaml()


def test_a_run_deleted_from_the_store_is_created_again_from_the_whole_journal(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    tracking = tracker(config)
    losses(tracking, 1_000, 2_000)
    assert tracking.finish(2_000, timeout=100.0) == 0
    client, run = the_run(tmp_path)
    client.delete_run(run.info.run_id)
    resumed = tracker(config, images=1_000)
    losses(resumed, 2_000, 3_000)
    assert resumed.finish(3_000, timeout=100.0) == 0
    assert steps(tmp_path) == [1_000, 2_000, 3_000]
    assert the_run(tmp_path)[1].data.params["name"] == "run"


def test_a_run_moved_to_another_store_is_complete_there_and_found_again_in_the_first(tmp_path: Path) -> None:
    here, there = (configuration(tmp_path, uri=f"sqlite:///{tmp_path}/{name}.db") for name in ("here", "there"))
    for config, images in ((here, 1), (there, 2), (here, 3)):
        tracking = tracker(config, images - 1)
        losses(tracking, images)
        assert tracking.finish(images, timeout=100.0) == 0
    assert steps(tmp_path, there.tracking.uri) == [1, 2]
    assert steps(tmp_path, here.tracking.uri) == [1, 2, 3]


def test_without_the_senders_state_there_are_no_duplicates(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    tracking = tracker(config)
    losses(tracking, 1_000, 2_000)
    assert tracking.finish(2_000, timeout=100.0) == 0
    (config.folder / "tracking.json").unlink()
    assert send_pending(config, config.folder) == 0
    assert steps(tmp_path) == [1_000, 2_000]


def test_a_sender_that_is_killed_repeatedly_loses_and_duplicates_nothing(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    tracking = tracker(config)
    images = list(range(0, 150_000, 100))
    losses(tracking, *images)
    assert tracking.finish(150_000, timeout=0.0) > 0
    for attempt in range(4):
        if pending_rows(config.folder) > 0:
            before = pending_rows(config.folder)
            sender = subprocess.Popen(
                [sys.executable, "-m", "mtgen.tracking.mlflow_sender", str(config.folder)],
                stdin=subprocess.PIPE,
                env={**os.environ, "MLFLOW_TRACKING_URI": store_uri(tmp_path), "MLFLOW_EXPERIMENT_NAME": "mtgen"},
                cwd=REPOSITORY,
            )
            if attempt % 2:  # as soon as it has sent something, or some time before or after
                until(lambda before=before: pending_rows(config.folder) < before)  # type: ignore[misc]
            else:
                time.sleep(1.5 + 0.5 * attempt)
            sender.kill()
            sender.communicate()
    assert send_pending(config, config.folder, timeout=100.0) == 0
    assert steps(tmp_path) == images


def test_a_sender_that_is_killed_while_it_creates_the_store_leaves_no_partial_one(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    tracking = tracker(config)
    until(lambda: bool(list(tmp_path.glob("mlflow.db.new*"))))
    sender = sender_of(config.folder)
    assert sender is not None
    sender.kill()
    assert not (tmp_path / "mlflow.db").exists()
    losses(tracking, 1_000, 2_000)
    tracking.finish(2_000, timeout=0.0)
    assert send_pending(config, config.folder, timeout=100.0) == 0
    assert steps(tmp_path) == [1_000, 2_000]
    assert not list(tmp_path.glob("mlflow.db.new*"))


def test_a_killed_training_is_reported_to_mlflow_and_resumes_in_the_same_run(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
import sys
sys.path.insert(0, {str(REPOSITORY / "tests")!r})
from helpers.mlflow_runs import configuration, losses, tracker
tracking = tracker(configuration(Path({str(tmp_path)!r})))
losses(tracking, 1_000, 2_000, 3_000)
os.kill(os.getpid(), signal.SIGKILL)
"""
    training = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=False)
    assert training.returncode == -signal.SIGKILL
    until(lambda: (tmp_path / "mlflow.db").exists() and pending_rows(tmp_path / "run") == 0)
    until(lambda: the_run(tmp_path)[1].info.status == "KILLED")
    resumed = tracker(configuration(tmp_path), images=2_000)
    losses(resumed, 3_000, 4_000)
    assert resumed.finish(4_000, timeout=100.0) == 0
    assert steps(tmp_path) == [1_000, 2_000, 3_000, 4_000]


def test_two_runs_that_start_together_share_a_new_database(tmp_path: Path) -> None:
    both = [tracker(configuration(tmp_path, name)) for name in ("one", "two")]
    for number in range(1, 200):
        for tracking in both:
            losses(tracking, number)
    assert [tracking.finish(200, timeout=100.0) for tracking in both] == [0, 0]
    client = MlflowClient(store_uri(tmp_path))
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert sorted(run.info.run_name or "" for run in found) == ["one", "two"]
    for run in found:
        assert [point.step for point in client.get_metric_history(run.info.run_id, "loss/d")] == list(range(1, 200))


def test_the_note_describes_the_run_and_shows_its_last_grid(finished: Path) -> None:
    client, run = the_run(finished)
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("**mtgen: run**, on digits: 6,000 images seen") and "| test/accuracy | 0.5000 |" in note
    assert "| on unseen data | |\n|---|---|\n" in note  # with fewer dashes MLflow shows no table
    assert f"![Samples](get-artifact?path=samples%2F6000-grid.png&run_uuid={run.info.run_id})" in note


def test_a_note_of_a_user_is_kept(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    assert tracker(config).finish(0, timeout=100.0) == 0
    client, run = the_run(tmp_path)
    client.set_tag(run.info.run_id, "mlflow.note.content", "my own words")
    resumed = tracker(config)
    losses(resumed, 1_000)
    assert resumed.finish(1_000, timeout=100.0) == 0
    assert the_run(tmp_path)[1].data.tags["mlflow.note.content"] == "my own words"


def test_runs_of_a_group_have_one_parent(tmp_path: Path) -> None:
    grouped = {"group": "a sweep's"}
    configurations = [
        configuration(tmp_path, "alone"),
        *(configuration(tmp_path, name, **grouped) for name in ("one", "two")),
    ]
    for tracking in [tracker(config) for config in configurations]:
        assert tracking.finish(0, timeout=100.0) == 0
    client = MlflowClient(store_uri(tmp_path))
    found = {
        run.info.run_name: run for run in client.search_runs([e.experiment_id for e in client.search_experiments()])
    }
    assert set(found) == {"one", "two", "alone", "a sweep's"}
    parents = [found[name].data.tags.get("mlflow.parentRunId") for name in ("one", "two", "alone")]
    assert parents == [found["a sweep's"].info.run_id] * 2 + [None]


def test_the_store_is_the_configured_one_else_the_environments_else_next_to_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert store_uri("runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert store_uri("runs") == "http://server:5000"
    assert store_uri("runs", "sqlite:///here.db") == f"sqlite:///{tmp_path}/here.db"


def test_a_password_in_the_configuration_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tracking.uri: holds a password.*MLFLOW_TRACKING_URI"):
        store_uri(tmp_path, "postgresql://user:secret@database/mlflow")


def test_sending_a_folder_without_a_run_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing: not a run"):
        send_pending(configuration(tmp_path), tmp_path / "nothing")


def test_repeated_evaluations_and_those_of_older_checkpoints_are_sent_and_survive_a_resume(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    tracking = tracker(config)
    losses(tracking, 1_000, 2_000, 3_000)
    assert tracking.finish(3_000, "KILLED", timeout=100.0) == 0
    with closing(Journal(config.folder)) as journal:
        for images, value in ((2_000, 0.25), (1_000, 0.5), (2_000, 0.75)):
            journal.row(images, {"evaluation/accuracy": value})
    resumed = tracker(config, images=2_000)
    losses(resumed, 3_000)
    assert resumed.finish(3_000, timeout=100.0) == 0
    client, run = the_run(tmp_path)
    expected = [(1_000, 0.5), (2_000, 0.25), (2_000, 0.75)]
    for _ in range(2):
        points = client.get_metric_history(run.info.run_id, "evaluation/accuracy")
        assert sorted((point.step, point.value) for point in points) == expected
        (config.folder / "tracking.json").unlink()
        assert send_pending(config, config.folder, timeout=100.0) == 0  # everything once more, and nothing is doubled
    assert steps(tmp_path) == [1_000, 2_000, 3_000]


def test_a_killed_evaluation_leaves_the_run_as_it_ended(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    assert tracker(config).finish(0, timeout=100.0) == 0
    with closing(Journal(config.folder)) as journal:
        journal.row(0, {"evaluation/accuracy": 0.5})
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store_uri(tmp_path), "MLFLOW_EXPERIMENT_NAME": "mtgen"}
    command = [sys.executable, "-m", "mtgen.tracking.mlflow_sender", str(config.folder)]
    subprocess.run(
        command, stdin=subprocess.DEVNULL, env=environment, cwd=REPOSITORY, check=True
    )  # its standard input ends without a number
    assert steps(tmp_path, key="evaluation/accuracy") == [0]
    assert the_run(tmp_path)[1].info.status == "FINISHED"


def test_a_killed_training_is_reported_even_if_files_cannot_be_sent(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    (tmp_path / "mlartifacts").touch()  # where the folder of the artifacts should be
    tracking = tracker(config)
    losses(tracking, 1_000)
    until(lambda: (tmp_path / "mlflow.db").exists() and steps_or_none(tmp_path) == [1_000])
    sender = sender_of(config.folder)
    assert sender is not None and tracking._sender.stdin is not None
    tracking._sender.stdin.close()  # as when training is killed
    sender.wait(60)
    assert the_run(tmp_path)[1].info.status == "KILLED"


def test_evaluating_a_run_that_is_being_trained_does_not_wait_for_its_sender(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    tracking = tracker(config)
    losses(tracking, 1_000)
    until(lambda: (config.folder / "tracking.json").exists() and pending_rows(config.folder) == 0)
    # A sender that waited for the lock, which the training's sender holds, would not end before the test's own timeout.
    assert send_pending(config, config.folder, timeout=100_000.0) == 0
    assert tracking.finish(1_000, timeout=100.0) == 0


def steps_or_none(runs: Path) -> list[int]:
    """The losses' steps, once there is a run."""
    client = MlflowClient(store_uri(runs))
    return steps(runs) if client.search_runs([e.experiment_id for e in client.search_experiments()]) else []
