"""The predictor as an MLflow model: each input row is one image.

MLflow copies this file into the logged model and runs it from there.
"""

import base64
import binascii
import io
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from PIL import Image

from mtgen.errors import DataError
from mtgen.inference import trained_model


def decode(text: str, number: int) -> Image.Image:
    """Open an image file in base64.

    Raises:
        DataError: it is not base64, or not an image; names the row.
    """
    try:
        return Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
    except (binascii.Error, OSError) as error:
        raise DataError(f"row {number}: `image` is not a PNG, JPEG or WebP file in base64 ({error})") from None


class ServedPredictor(PythonModel):
    """Rows with an `image` (a file in base64) -> class, tags, mask (PNG in base64) and boxes in pixels per row.

    Only what the model was trained to predict is present.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model from the artifacts."""
        self.trained = trained_model.load(context.artifacts["model"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Predict each row's image; returns one dictionary per row."""
        settings = {"score": 0.3, **(params or {})}
        images = [decode(text, number) for number, text in enumerate(model_input["image"])]
        predictions = self.trained.predict(images, score=settings["score"])
        return [self._answer(row, mask) for row, mask in zip(predictions.rows, predictions.masks, strict=True)]

    @staticmethod
    def _answer(row: dict[str, Any], mask: Any) -> dict[str, Any]:
        answer = {name: value for name, value in row.items() if name != "file"}
        if mask is not None:
            out = io.BytesIO()
            Image.fromarray(mask).save(out, "PNG")
            answer["mask"] = base64.b64encode(out.getvalue()).decode()
        return answer


mlflow.models.set_model(ServedPredictor())
