"""MLflow is down, dies, hangs or cannot store files: training continues, and everything arrives later, once."""

import socket
import time
from pathlib import Path

import pytest
from helpers.mlflow_runs import configuration, free_port, losses, sender_of, server, steps, the_run, tracker, until
from mlflow import MlflowClient

from mtgen.storage.tracking_store import store_uri
from mtgen.tracking import mlflow_sender
from mtgen.tracking.mlflow_sender import pending_rows
from mtgen.tracking.tracker import send_pending

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(autouse=True)
def _no_store_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")


def until_warned(capfd: pytest.CaptureFixture[str]) -> None:
    """Wait until the sender has tried to send, and failed."""
    until(lambda: "will be sent later" in capfd.readouterr().err)


def test_a_server_that_is_down_at_first_and_dies_in_the_middle_gets_everything_once_and_in_order(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    config = configuration(tmp_path, uri=uri)
    tracking = tracker(config)
    losses(tracking, *range(1, 11))
    until_warned(capfd)
    assert pending_rows(config.folder) == 11
    with server(tmp_path, port):
        until(lambda: pending_rows(config.folder) == 0)
    picture = config.folder / "picture.png"
    picture.write_bytes(b"a picture")
    tracking.artifact(10, picture)
    losses(tracking, *range(11, 21))
    until_warned(capfd)
    assert pending_rows(config.folder) == 11
    with server(tmp_path, port):
        losses(tracking, *range(21, 31))
        assert tracking.finish(30, timeout=100.0) == 0
        assert steps(tmp_path, uri) == list(range(1, 31))
        client, run = the_run(tmp_path, uri)
        assert run.info.status == "FINISHED"
        assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"config.yaml", "picture.png"}


def test_training_does_not_wait_for_a_server_that_never_answers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts connections, and nothing answers
        config = configuration(tmp_path, uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        tracking = tracker(config)
        silent.settimeout(60)
        connection, _ = silent.accept()  # the sender is now waiting for an answer
        with connection:
            losses(tracking, *range(1, 1_001))
            sender = sender_of(config.folder)
            assert sender is not None
            assert tracking.finish(1_000, timeout=2.0) == 1_002  # the rows, its start and its end
            assert not sender.is_running()
    assert capfd.readouterr().err.count("\n") <= 1


def test_pending_rows_are_sent_later_by_another_process(tmp_path: Path) -> None:
    port = free_port()
    config = configuration(tmp_path, uri=f"http://127.0.0.1:{port}")
    tracking = tracker(config)
    losses(tracking, 1, 2, 3)
    assert tracking.finish(3, "FAILED", timeout=0.5) == 5
    with server(tmp_path, port) as uri:
        assert send_pending(config, config.folder, timeout=100.0) == 0
        assert steps(tmp_path, uri) == [1, 2, 3]
        assert the_run(tmp_path, uri)[1].info.status == "FAILED"


def test_a_server_that_is_down_is_reported_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tracking = tracker(configuration(tmp_path, uri=f"http://127.0.0.1:{free_port()}"))
    losses(tracking, 1, 2, 3)
    said = ""
    while not said:  # the first attempt; there are more until the end
        time.sleep(0.1)
        said = capfd.readouterr().err
    assert tracking.finish(3, timeout=5.0) == 5
    lines = (said + capfd.readouterr().err).splitlines()
    assert len(lines) == 1 and lines[0].startswith("MLflow: metrics are kept and will be sent later (")


def test_metrics_do_not_wait_for_an_artifact_store_that_fails(tmp_path: Path) -> None:
    (tmp_path / "mlartifacts").write_text("no folder")
    tracking = tracker(configuration(tmp_path))
    losses(tracking, 1, 2)
    until(lambda: pending_rows(tmp_path / "run") == 1)  # the start, of which config.yaml waits
    assert tracking.finish(2, timeout=10.0) == 1
    assert steps(tmp_path) == [1, 2]
    assert the_run(tmp_path)[1].info.status == "FINISHED"


def test_attempts_come_at_growing_intervals_and_warnings_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(mlflow_sender.time, "monotonic", lambda: clock[0])
    state = mlflow_sender.RetryState("metrics")
    attempts: list[float] = []

    def fail() -> None:
        attempts.append(clock[0])
        raise ConnectionError("no answer")

    for second in range(130):
        clock[0] = float(second)
        assert not state.attempt(fail)
    assert attempts == [0, 1, 3, 7, 15, 31, 61, 91, 121]
    assert capsys.readouterr().err.count("MLflow: metrics are kept and will be sent later (ConnectionError") == 3
    clock[0] = 200.0
    assert state.attempt(lambda: None)
    assert "nothing was lost" in capsys.readouterr().err


def test_a_deleted_experiment_is_named_with_its_remedy_and_nothing_waits_for_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = configuration(tmp_path)
    client = MlflowClient(store_uri(tmp_path))
    client.delete_experiment(client.create_experiment("mtgen"))
    tracking = tracker(config)
    losses(tracking, 1)
    assert tracking.finish(1, timeout=300.0) == 3  # it does not take the 300 seconds, which are longer than a test may
    assert "restore it with `mlflow experiments restore --experiment-id 1`, or take another" in capfd.readouterr().err
    client.restore_experiment("1")
    assert send_pending(config, config.folder, timeout=300.0) == 0
