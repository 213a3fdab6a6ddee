"""Export a trained model: its weights with everything needed to use them, a model card, and ONNX files."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from mtgen.checkpointing.averaged_weights import WEIGHTS_FILE, write_weights
from mtgen.checkpointing.checkpoint import UNFINISHED_SUFFIX
from mtgen.errors import ConfigError, UserError
from mtgen.export.graphs import OPSET, check_heads, write_generator, write_predictor
from mtgen.export.model_card import model_card
from mtgen.models import assets
from mtgen.models.loading import find_model, load_run, weights_of
from mtgen.models.model import Model
from mtgen.models.sampling import balanced_labels, class_prompts, generate
from mtgen.schema import Canvas
from mtgen.visualization.grids import sample_grid

SAMPLES_FILE = "samples.png"
SAMPLES_PER_CLASS = 8
"""Samples per class in the picture."""
MAX_PICTURE_CLASSES = 10
"""Maximum number of classes in the picture."""


def export(
    run: str | Path, to: Path, *, onnx: bool = False, heads: Sequence[str] = (), device: str = "cpu"
) -> list[Path]:
    """Write a model to a new folder, which `mtgen.load` and the commands accept like a run.

    The folder appears only when it is complete.

    Args:
        run: a run (its newest checkpoint), a checkpoint, or an exported model.
        to: the folder, which must not exist.
        onnx: also write `generator.onnx` and `predictor.onnx`.
        heads: write `predictor-HEAD.onnx` for each of these heads instead of one predictor with all heads.

    Returns:
        The files of the folder.

    Raises:
        ConfigError: the folder exists, or the model has no such head.
        UserError: the packages that write ONNX are not installed, or the folder cannot be written.
        CheckpointError: the run does not exist or is damaged.
    """
    to = to.absolute()
    if to.exists():
        raise ConfigError(f"{to}: exists already; choose another folder, or remove this one")
    path = find_model(run)
    weights, (model, _) = weights_of(path), load_run(path, device)
    if onnx or heads:
        check_heads(model, heads)
    partial = to.with_name(f".{to.name}{UNFINISHED_SUFFIX}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_weights(weights, partial / WEIGHTS_FILE)
        (partial / "config.yaml").write_text(weights.config, encoding="utf-8")
        (partial / "card.json").write_text(
            json.dumps(weights.card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        assets.copy_assets(model.config, partial)
        graphs = _graphs(model, partial, heads) if onnx or heads else {}
        if model.config.generates:
            _picture(model).save(partial / SAMPLES_FILE)
        text = model_card(model, weights, path, SAMPLES_FILE if model.config.generates else None, graphs, OPSET)
        (partial / "README.md").write_text(text, encoding="utf-8")
        os.rename(partial, to)
    except OSError as error:
        raise UserError(
            f"{to}: cannot be written ({error.strerror}); choose another folder, or free disk space"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(to.iterdir())


def _graphs(model: Model, folder: Path, heads: Sequence[str]) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    """Write the ONNX files; returns the inputs and outputs of each by file name, with their shapes."""
    found = {}
    if model.config.generates:
        found["generator.onnx"] = write_generator(model, folder / "generator.onnx")
    for name, some in [(f"predictor-{head}.onnx", [head]) for head in heads] or [("predictor.onnx", [])]:
        found[name] = write_predictor(model, folder / name, some)
    return found


@torch.no_grad()
def _picture(model: Model) -> Image.Image:
    """Samples with their masks, one class per column."""
    conditional = {"class", "labels"} & set(model.conditions)
    classes = list(range(min(len(model.card.classes), MAX_PICTURE_CLASSES))) if conditional else []
    labels = balanced_labels(SAMPLES_PER_CLASS * max(len(classes), SAMPLES_PER_CLASS), classes)
    parts = generate(model, class_prompts(model, labels), 0, "export")
    canvas = Canvas.cat([part.map(lambda tensor: tensor.cpu()) for part, _ in parts])
    return sample_grid(canvas, labels, model.card)
