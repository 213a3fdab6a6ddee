"""The predictor as MLflow runs it: a row is one image to read. MLflow copies this file into the model and runs it there."""

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


def decoded(text: str, number: int) -> Image.Image:
    """An image file in base64.

    Raises:
        DataError: it is no base64, or no image; names the row.
    """
    try:
        return Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
    except (binascii.Error, OSError) as error:
        raise DataError(f"row {number}: `image` is no PNG, JPEG or WebP file in base64 ({error})") from None


class ServedPredictor(PythonModel):
    """Rows with an `image`, a file in base64 -> class, tags, mask (PNG, base64) and boxes in pixels, of those that the model reads."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model that lies among the artifacts."""
        self.trained = trained_model.load(context.artifacts["model"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """A dictionary for each row."""
        given = {"score": 0.3, **(params or {})}
        images = [decoded(text, number) for number, text in enumerate(model_input["image"])]
        read = self.trained.predict(images, score=given["score"])
        return [self._answer(row, mask) for row, mask in zip(read.rows, read.masks, strict=True)]

    @staticmethod
    def _answer(row: dict[str, Any], mask: Any) -> dict[str, Any]:
        answer = {name: value for name, value in row.items() if name != "file"}
        if mask is not None:
            out = io.BytesIO()
            Image.fromarray(mask).save(out, "PNG")
            answer["mask"] = base64.b64encode(out.getvalue()).decode()
        return answer


mlflow.models.set_model(ServedPredictor())
