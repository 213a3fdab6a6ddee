"""Log a run's generator and predictor as MLflow models and register them."""

import base64
import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import Array, Object, Property
from PIL import Image

from mtgen.errors import UserError
from mtgen.export import export
from mtgen.inference import trained_model
from mtgen.inference.trained_model import TrainedModel
from mtgen.models.loading import find_run
from mtgen.storage.tracking_store import store_uri
from mtgen.tracking.mlflow_sender import SenderState
from mtgen.tracking.tracker import send_pending
from mtgen.version import PACKAGE

PINNED_PACKAGES = (
    "fsspec",
    "numpy",
    "pillow",
    "pydantic",
    "PyYAML",
    "rich",
    "safetensors",
    "tokenizers",
    "torch",
    "typer",
)
"""Dependencies of `pip install mtgen`, pinned in the logged model; mtgen itself is included as code."""

BOX_SCHEMA = Object(
    [
        Property("class", DataType.string),
        Property("number", DataType.long),
        Property("score", DataType.double),
        Property("box", Array(DataType.double)),
    ]
)
"""Schema of an output box; `box` is x0, y0, x1, y1 in pixels."""
Columns = list[ColSpec | TensorSpec]
SERVE_COMMAND = "MLFLOW_TRACKING_URI={uri} mlflow models serve -m {model} --env-manager local"


def register(
    run: str | Path, name: str, alias: str | None = None, say: Callable[[str], None] = print
) -> dict[str, str]:
    """Register a run's models as NAME-generator and NAME-predictor, logged as pyfunc models to its MLflow run.

    Args:
        alias: alias of the new versions, such as "champion".
        say: called with one line for each model, which has the command that serves it.

    Returns:
        Version of each registered model by name.

    Raises:
        UserError: MLflow does not have the run, does not respond, or rejects the name.
        CheckpointError: the run does not exist or is damaged.
    """
    folder = find_run(run)
    trained = trained_model.load(folder, "cpu")
    config = trained.model.config
    send_pending(config, folder)
    run_id, uri = SenderState.load(folder).run_id, store_uri(folder.parent, config.tracking.uri)
    if not run_id:
        raise UserError(
            f"{folder}: MLflow does not have this run yet; start the server at {uri} or set MLFLOW_TRACKING_URI, "
            "then try again"
        )
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    versions = {}
    with tempfile.TemporaryDirectory() as temporary, _clear_errors():
        exported = Path(temporary) / "model"
        export(folder, exported)
        for part in ["generator", "predictor"] if config.generates else ["predictor"]:
            registered = f"{name}-{part}"
            version = versions[registered] = _log(trained, part, exported, run_id, registered)
            if alias:
                mlflow.MlflowClient().set_registered_model_alias(registered, alias, version)
            at = f"models:/{registered}" + (f"@{alias}" if alias else f"/{version}")
            say(f"registered version {version}; to serve it: {SERVE_COMMAND.format(uri=uri, model=at)}")
    return versions


def _log(trained: TrainedModel, part: str, exported: Path, run_id: str, registered: str) -> str:
    """Log one part as a model to the run and register it; returns its version."""
    signature, example = _interface(trained, part)
    packages = ("mlflow", "pandas", *PINNED_PACKAGES)
    with _reopened(run_id):
        logged = mlflow.pyfunc.log_model(
            name=part,
            python_model=str(Path(__file__).with_name(f"{part}.py")),
            artifacts={"model": str(exported)},
            code_paths=[str(PACKAGE)],
            pip_requirements=[f"{package}=={metadata.version(package)}" for package in packages],
            signature=signature,
            input_example=example,
            registered_model_name=registered,
        )
    return str(logged.registered_model_version)


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Turn errors of MLflow into one-line user errors."""
    try:
        yield
    except mlflow.exceptions.MlflowException as error:
        raise UserError(f"MLflow: {' '.join(str(error).split())}") from None


@contextmanager
def _reopened(run_id: str) -> Iterator[None]:
    """Make a finished run active, and restore its status and end time afterwards."""
    client = mlflow.MlflowClient()
    before = client.get_run(run_id).info
    try:
        with mlflow.start_run(run_id=run_id):
            yield
    finally:
        client.set_terminated(run_id, before.status, before.end_time)


def _interface(trained: TrainedModel, part: str) -> tuple[ModelSignature, tuple[pd.DataFrame, dict[str, Any]]]:
    """Signature of a part, and an example of its input with the default parameters."""
    params: dict[str, Any]
    if part == "predictor":
        inputs, outputs, example = _predictor_interface(trained)
        params = {"score": 0.3}
        masks, boxes = "segmentation" in trained.tasks, "detection" in trained.tasks
    else:
        inputs, outputs, example = _generator_interface(trained)
        params = {"seed": 0, "truncation": 1.0}
        spec = trained.model.networks.generator.canvas_spec
        masks, boxes = spec.mask_classes > 0, spec.box_maps > 0
    outputs = [ColSpec("string", "class", required=False), *outputs]
    outputs += [ColSpec("string", "mask")] if masks else []
    outputs += [ColSpec(Array(BOX_SCHEMA), "boxes")] if boxes else []
    schema = ParamSchema([ParamSpec(name, "long" if isinstance(v, int) else "double", v) for name, v in params.items()])
    return ModelSignature(Schema(inputs), Schema(outputs), schema), (example, params)


def _predictor_interface(trained: TrainedModel) -> tuple[Columns, Columns, pd.DataFrame]:
    """Input and output columns of the predictor, and an example of its input."""
    picture, out = Image.new("L" if trained.model.channels == 1 else "RGB", trained.model.size[::-1], 128), io.BytesIO()
    picture.save(out, "PNG")
    example = pd.DataFrame({"image": [base64.b64encode(out.getvalue()).decode()]})
    outputs: Columns = [*(ColSpec("long", name) for name in ("width", "height")), ColSpec(Array(DataType.long), "seen")]
    if "classification" in trained.tasks:
        outputs += [ColSpec("long", "number"), ColSpec("double", "probability")]
    return [ColSpec("string", "image")], outputs, example


def _generator_interface(trained: TrainedModel) -> tuple[Columns, Columns, pd.DataFrame]:
    """Input and output columns of the generator, and an example of its input."""
    names = [name for name in ("class", "caption", "domain") if name in trained.conditions] or ["class"]
    example = pd.DataFrame(
        [{names[0]: trained.card.classes[0] if names[0] == "class" and trained.card.classes else ""}]
    )
    outputs: Columns = [ColSpec("string", "image"), ColSpec("string", "caption", required=False)]
    return [ColSpec("string", name, required=False) for name in names], outputs, example
