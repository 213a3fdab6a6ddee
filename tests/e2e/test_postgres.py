"""MLflow as teams run it: a server with PostgreSQL and an S3-compatible store for files. All three are real."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
import mlflow
import pytest
from helpers.made_models import made, saved
from helpers.mlflow_runs import free_port, running, server, until
from helpers.prerequisites import needs
from mlflow import MlflowClient

from mtgen.models.loading import load_run
from mtgen.serving.register import register
from mtgen.tracking.mlflow_sender import SenderState
from mtgen.tracking.tracker import Tracker

POSTGRES = shutil.which("postgres") or next(map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))), None)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    needs("postgres", "postgresql", POSTGRES),
]


@contextmanager
def postgres(port: int) -> Iterator[str]:
    """A database server on loopback; it refuses to run as root, so root starts it as its own user."""
    assert POSTGRES is not None
    user = "postgres" if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="mtgen-postgres-", ignore_cleanup_errors=True) as folder:
        if user:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
        data, here = f"{folder}/data", Path(os.path.realpath(POSTGRES)).parent
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(
            [here / "initdb", "-D", data, "-U", "mtgen", "-A", "trust"], user=user, cwd=folder, check=True, **quiet
        )
        words = [here / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder]
        process = subprocess.Popen(words, user=user, cwd=folder, **quiet)
        try:
            until(
                lambda: (
                    subprocess.run([here / "pg_isready", "-h", "127.0.0.1", "-p", str(port)], **quiet).returncode == 0
                )
            )
            yield f"postgresql+psycopg2://mtgen@127.0.0.1:{port}/postgres"
        finally:
            process.terminate()
            process.wait()


@dataclass
class Team:
    """Addresses of the tracking server and the store, and the environment of the store's users."""

    uri: str
    store: str
    keys: dict[str, str]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder, port = tmp_path_factory.mktemp("team"), free_port()
    store = f"http://127.0.0.1:{port}"
    keys = {
        "AWS_ACCESS_KEY_ID": "team",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_S3_ENDPOINT_URL": store,
    }
    moto = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (
        running(moto, f"{store}/moto-api/", folder),
        postgres(free_port()) as database,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in keys.items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=store).create_bucket(Bucket="runs")
        with server(folder, free_port(), database, "s3://runs/artifacts", **keys) as uri:
            patch.setenv("MLFLOW_TRACKING_URI", uri)
            yield Team(uri, store, keys)


@pytest.fixture(scope="module")
def run(team: Team, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with some rows, recorded and registered on the server."""
    folder = saved(made(), tmp_path_factory.mktemp("runs") / "test")
    model, images = load_run(folder)
    tracker = Tracker(model.config, folder, model.card, "5eed")
    for number in range(1, images + 1):
        tracker.row(number, {"loss/d": float(number)})
    assert tracker.finish(images, timeout=100.0) == 0
    register(folder, "toy", "champion", say=lambda text: None)
    return folder


def test_rows_parameters_and_files_are_in_the_database_and_the_store(team: Team, run: Path) -> None:
    client, images = MlflowClient(team.uri), load_run(run)[1]
    found = client.get_run(SenderState.load(run).run_id)
    assert found.info.status == "FINISHED" and found.data.params["batch_size"]
    assert [point.step for point in client.get_metric_history(found.info.run_id, "loss/d")] == list(
        range(1, images + 1)
    )
    kept = [
        item["Key"] for item in boto3.client("s3", endpoint_url=team.store).list_objects_v2(Bucket="runs")["Contents"]
    ]
    assert any(key.endswith("config.yaml") for key in kept) and any(key.endswith("model.safetensors") for key in kept)


def test_the_registered_models_are_loaded_from_there(team: Team, run: Path) -> None:
    mlflow.set_tracking_uri(team.uri)
    try:
        generator = mlflow.pyfunc.load_model("models:/toy-generator@champion")
    finally:
        mlflow.set_tracking_uri(None)
    (drawn,) = generator.predict([{"class": "one"}], params={"seed": 3})
    assert drawn["class"] == "one" and drawn["image"]
