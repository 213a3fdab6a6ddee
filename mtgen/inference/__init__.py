"""Use a trained run: sample images or whole data sets, predict labels, translate images. One file per operation."""

from mtgen.inference.inputs import has_many_inputs
from mtgen.inference.predict import json_rows, predict_run
from mtgen.inference.prompt import PromptRequest
from mtgen.inference.sample import interpolate_run, sample_run
from mtgen.inference.translate import translate_run

__all__ = [
    "PromptRequest",
    "has_many_inputs",
    "interpolate_run",
    "json_rows",
    "predict_run",
    "sample_run",
    "translate_run",
]
