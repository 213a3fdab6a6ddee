"""The generator as MLflow runs it: a row asks for one image. MLflow copies this file into the model and runs it there."""

import base64
import io
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from PIL import Image

from mtgen.inference import trained_model

ARGUMENT_BY_COLUMN = {"class": "class_", "caption": "caption", "domain": "domain"}
"""Column -> the argument of `Trained.sample` that it is."""


def encoded(picture: Image.Image) -> str:
    """A picture as PNG in base64."""
    out = io.BytesIO()
    picture.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


class ServedGenerator(PythonModel):
    """Rows of conditions in words -> PNG (base64) with class, mask and boxes.

    Row i's latent is a function of the parameter `seed` and i alone; an empty or missing column asks for nothing.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model that lies among the artifacts."""
        self.trained = trained_model.load(context.artifacts["model"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """A dictionary for each row."""
        given = {"seed": 0, "truncation": 1.0, **(params or {})}
        answers = []
        for number, row in enumerate(model_input.to_dict("records")):
            asked: dict[str, Any] = {
                argument: row[name] for name, argument in ARGUMENT_BY_COLUMN.items() if isinstance(row.get(name), str)
            }
            drawn = self.trained.sample(1, **asked, seed=given["seed"] + number, truncation=given["truncation"])
            answer = {"image": encoded(drawn.images[0]), **drawn.rows[0]}
            answers.append(
                answer | ({} if (mask := drawn.masks[0]) is None else {"mask": encoded(Image.fromarray(mask))})
            )
        return answers


mlflow.models.set_model(ServedGenerator())
