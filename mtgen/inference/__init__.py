"""Use a trained run: draw pictures or whole data sets with it, read images, translate them; what it does is one file each."""

from mtgen.inference.inputs import several
from mtgen.inference.predict import json_rows, predict_run
from mtgen.inference.prompt import PromptRequest
from mtgen.inference.sample import interpolate_run, sample_run
from mtgen.inference.translate import translate_run

__all__ = ["PromptRequest", "interpolate_run", "json_rows", "predict_run", "sample_run", "several", "translate_run"]
