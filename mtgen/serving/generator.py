"""The generator as an MLflow model: each input row is a prompt for one image.

MLflow copies this file into the logged model and runs it from there.
"""

import base64
import io
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from PIL import Image

from mtgen.inference import trained_model

ARGUMENT_BY_COLUMN = {"class": "class_", "caption": "caption", "domain": "domain"}
"""Input column -> argument of `TrainedModel.sample`."""


def encode(picture: Image.Image) -> str:
    """Encode a picture as PNG in base64."""
    out = io.BytesIO()
    picture.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


class ServedGenerator(PythonModel):
    """Rows of conditions in words -> an image (PNG in base64) with class, mask and boxes per row.

    The latent of row i is a function of the parameter `seed` and i only. An empty or missing column is no condition.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model from the artifacts."""
        self.trained = trained_model.load(context.artifacts["model"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Generate an image for each row; returns one dictionary per row."""
        settings = {"seed": 0, "truncation": 1.0, **(params or {})}
        answers = []
        for number, row in enumerate(model_input.to_dict("records")):
            prompt: dict[str, Any] = {
                argument: row[name] for name, argument in ARGUMENT_BY_COLUMN.items() if isinstance(row.get(name), str)
            }
            sample = self.trained.sample(1, **prompt, seed=settings["seed"] + number, truncation=settings["truncation"])
            answer = {"image": encode(sample.images[0]), **sample.rows[0]}
            if (mask := sample.masks[0]) is not None:
                answer["mask"] = encode(Image.fromarray(mask))
            answers.append(answer)
        return answers


mlflow.models.set_model(ServedGenerator())
