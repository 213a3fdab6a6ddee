"""A run is registered under an alias, served by MLflow's command, and called over HTTP."""

import base64
import io
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from helpers.made_models import made, picture, saved
from helpers.mlflow_runs import free_port, running
from mlflow import MlflowClient
from PIL import Image

import mtgen
from mtgen.errors import UserError
from mtgen.models.loading import load_run
from mtgen.serving.register import register
from mtgen.storage.tracking_store import store_uri
from mtgen.tracking.mlflow_sender import SenderState
from mtgen.tracking.tracker import Tracker

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registered run in MLflow."""
    folder = saved(made(), tmp_path_factory.mktemp("runs") / "test")
    model, images = load_run(folder)
    assert Tracker(model.config, folder, model.card, "5eed").finish(images, timeout=100.0) == 0
    register(folder, "toy", "champion", say=lambda text: None)
    return folder


@pytest.fixture(scope="module")
def client(run: Path) -> MlflowClient:
    return MlflowClient(store_uri(run.parent))


@contextmanager
def served(run: Path, name: str, store: str) -> Iterator[str]:
    """A registered model, served by MLflow's command."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        f"models:/{name}@champion",
        "--env-manager",
        "local",
    ]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # as in an active environment
    address = f"http://127.0.0.1:{port}"
    with running(
        [*command, "-h", "127.0.0.1", "-p", str(port)], f"{address}/ping", run, PATH=path, MLFLOW_TRACKING_URI=store
    ):
        yield address


@pytest.fixture(scope="module")
def servers(run: Path) -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        yield {
            part: stack.enter_context(served(run, f"toy-{part}", store_uri(run.parent)))
            for part in ("generator", "predictor")
        }


def call(address: str, rows: list[dict[str, str]], **params: Any) -> list[dict[str, Any]]:
    body = json.dumps({"dataframe_records": rows, "params": params}).encode()
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return list(json.load(answer)["predictions"])


def opened(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_conditions_in_images_with_their_labels_out(servers: dict[str, str], run: Path) -> None:
    samples = call(servers["generator"], [{"class": "one"}, {"class": "7", "caption": "it"}], seed=3)
    expected = mtgen.load(run, "cpu").sample(1, "7", caption="it", seed=4)
    assert [row["class"] for row in samples] == ["one", "7"]
    assert np.abs(opened(samples[1]["image"]).astype(int) - np.asarray(expected.images[0])).max() <= 1
    assert (
        opened(samples[1]["mask"]).shape == (8, 8)
        and samples[1]["caption"] == "it"
        and isinstance(samples[0]["boxes"], list)
    )


def test_images_in_class_mask_and_boxes_out(servers: dict[str, str], run: Path) -> None:
    out = io.BytesIO()
    picture(8, 8).save(out, "PNG")
    (read,) = call(servers["predictor"], [{"image": base64.b64encode(out.getvalue()).decode()}], score=0.2)
    expected = mtgen.load(run, "cpu").predict(picture(8, 8), score=0.2)
    assert read["class"] == expected.classes[0] and read["probability"] == pytest.approx(
        expected.rows[0]["probability"], abs=1e-4
    )
    assert opened(read["mask"]).shape == (8, 8) and len(read["boxes"]) == len(expected.rows[0]["boxes"]) > 0


def test_data_that_is_not_an_image_is_an_error_that_names_the_row(servers: dict[str, str]) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        call(servers["predictor"], [{"image": "no image"}])
    assert "row 0: `image` is not a PNG" in refused.value.read().decode()


def test_the_models_are_the_runs_with_signature_example_and_pinned_requirements(
    run: Path, client: MlflowClient
) -> None:
    for part in ("generator", "predictor"):
        version = client.get_model_version_by_alias(f"toy-{part}", "champion")
        assert int(version.version) == 1 and version.run_id == SenderState.load(run).run_id
        folder = Path(
            mlflow.artifacts.download_artifacts(f"models:/toy-{part}@champion", tracking_uri=store_uri(run.parent))
        )
        kept = {path.name for path in folder.rglob("*")}
        assert {"input_example.json", "requirements.txt", "model.safetensors", "trained_model.py"} <= kept
        assert not any(name.endswith((".pkl", ".pickle")) for name in kept)
        lines = (folder / "requirements.txt").read_text().split()
        assert all("==" in line for line in lines) and not any(line.startswith(("ray", "deepspeed")) for line in lines)


def test_the_runs_end_is_unchanged(run: Path, client: MlflowClient) -> None:
    info = client.get_run(SenderState.load(run).run_id).info
    assert info.status == "FINISHED"


def test_the_end_of_a_run_whose_registration_is_rejected_is_unchanged(run: Path, client: MlflowClient) -> None:
    before = client.get_run(SenderState.load(run).run_id).info
    with pytest.raises(UserError, match="MLflow: "):
        register(run, "no/name", say=lambda text: None)
    after = client.get_run(SenderState.load(run).run_id).info
    assert (after.status, after.end_time) == (before.status, before.end_time) and before.status == "FINISHED"


def test_a_run_that_mlflow_does_not_know_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run"):
        register(saved(made(), tmp_path / "runs" / "test"), "toy")
