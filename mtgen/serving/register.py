"""Log a run's generator and predictor to its MLflow run, and register them."""

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
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
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
"""What `pip install mtgen` brings: pinned in the model, whose code of mtgen is its own copy."""

BOX_SCHEMA = Object(
    [
        Property("class", DataType.string),
        Property("number", DataType.long),
        Property("score", DataType.double),
        Property("box", Array(DataType.double)),
    ]
)
"""A box as it comes out: x0, y0, x1, y1 in pixels."""


def register(
    run: str | Path, name: str, alias: str | None = None, say: Callable[[str], None] = print
) -> dict[str, str]:
    """Log generator and predictor as pyfunc models to the run's MLflow run, and register them as NAME-generator and NAME-predictor.

    Args:
        alias: name that points at the new versions, such as "champion".
        say: is given a line for each model, with the command that serves it.

    Returns:
        Name of each registered model -> its version.

    Raises:
        UserError: MLflow has no such run, does not answer, or refuses the name.
        CheckpointError: there is no such run, or it is damaged.
    """
    folder = find_run(run)
    trained = trained_model.load(folder, "cpu")
    config = trained.model.config
    send_pending(config, folder)
    run_id, uri = SenderState.load(folder).run_id, store_uri(folder.parent, config.tracking.uri)
    if not run_id:
        raise UserError(
            f"{folder}: MLflow does not have this run yet; start {uri}, or set MLFLOW_TRACKING_URI, and try again"
        )
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    versions = {}
    with tempfile.TemporaryDirectory() as place, _words():
        export(folder, Path(place) / "model")
        parts = ["generator", "predictor"] if config.generates else ["predictor"]
        for part, signature, example in [(part, *_interface(trained, part)) for part in parts]:
            with _continued(run_id):
                found = mlflow.pyfunc.log_model(
                    name=part,
                    python_model=str(Path(__file__).with_name(f"{part}.py")),
                    artifacts={"model": str(Path(place) / "model")},
                    code_paths=[str(PACKAGE)],
                    pip_requirements=[
                        f"{package}=={metadata.version(package)}" for package in ("mlflow", "pandas", *PINNED_PACKAGES)
                    ],
                    signature=signature,
                    input_example=example,
                    registered_model_name=f"{name}-{part}",
                )
            version = str(found.registered_model_version)
            versions[f"{name}-{part}"] = version
            if alias:
                mlflow.MlflowClient().set_registered_model_alias(f"{name}-{part}", alias, version)
            at = f"models:/{name}-{part}" + (f"@{alias}" if alias else f"/{version}")
            say(
                f"registered version {version}; to serve it: MLFLOW_TRACKING_URI={uri} mlflow models serve -m {at} --env-manager local"
            )
    return versions


@contextmanager
def _words() -> Iterator[None]:
    """MLflow's errors as one clear error."""
    try:
        yield
    except mlflow.exceptions.MlflowException as error:
        raise UserError(f"MLflow: {' '.join(str(error).split())}") from None


@contextmanager
def _continued(run_id: str) -> Iterator[None]:
    """The run, active; afterwards it has ended as and when it had before."""
    client = mlflow.MlflowClient()
    before = client.get_run(run_id).info
    try:
        with mlflow.start_run(run_id=run_id):
            yield
    finally:
        client.set_terminated(run_id, before.status, before.end_time)


def _interface(trained: TrainedModel, part: str) -> tuple[ModelSignature, tuple[pd.DataFrame, dict[str, Any]]]:
    """What goes in and what comes out of a part, and an example of what goes in."""
    tasks = set(trained.tasks)
    outputs: list[Any] = [ColSpec("string", "class", required=False)]
    if part == "predictor":
        picture, out = (
            Image.new("L" if trained.model.channels == 1 else "RGB", trained.model.size[::-1], 128),
            io.BytesIO(),
        )
        picture.save(out, "PNG")
        inputs: list[Any] = [ColSpec("string", "image")]
        example = pd.DataFrame({"image": [base64.b64encode(out.getvalue()).decode()]})
        params: dict[str, Any] = {"score": 0.3}
        outputs += [ColSpec("long", name) for name in ("width", "height")] + [ColSpec(Array(DataType.long), "seen")]
        outputs += [ColSpec("long", "number"), ColSpec("double", "probability")] if "classification" in tasks else []
        masks, boxes = "segmentation" in tasks, "detection" in tasks
    else:
        known = [name for name in ("class", "caption", "domain") if name in trained.conditions] or ["class"]
        inputs = [ColSpec("string", name, required=False) for name in known]
        example = pd.DataFrame(
            [{known[0]: trained.card.classes[0] if known[0] == "class" and trained.card.classes else ""}]
        )
        params = {"seed": 0, "truncation": 1.0}
        outputs += [ColSpec("string", "image"), ColSpec("string", "caption", required=False)]
        drawing = trained.model.networks.generator.canvas_spec
        masks, boxes = drawing.mask_classes > 0, drawing.box_maps > 0
    outputs += [ColSpec("string", "mask")] if masks else []
    outputs += [ColSpec(Array(BOX_SCHEMA), "boxes")] if boxes else []
    schema = ParamSchema([ParamSpec(name, "long" if isinstance(v, int) else "double", v) for name, v in params.items()])
    return ModelSignature(Schema(inputs), Schema(outputs), schema), (example, params)
