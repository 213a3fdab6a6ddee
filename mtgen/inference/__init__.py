"""Use a trained run: draw pictures or whole data sets with it, read images, translate them; what it does is one file each."""

from mtgen.inference.draw import interpolate_run, sample_run
from mtgen.inference.prompt import Request
from mtgen.inference.read import json_rows, predict_run
from mtgen.inference.sources import several
from mtgen.inference.translate import translate_run

__all__ = ["Request", "interpolate_run", "json_rows", "predict_run", "sample_run", "several", "translate_run"]
