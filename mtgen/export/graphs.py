"""The generator and the predictor as ONNX: tensors in, tensors out, any batch size; nothing of mtgen or torch is needed to run them.

Gates and other autograd functions stand in training alone, so none of them is in the way.
"""

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtgen.errors import ConfigError, UserError
from mtgen.models.model import Model
from mtgen.networks.center_maps import decode_canvas
from mtgen.registry import suggest
from mtgen.schema import Batch, Canvas, Prediction, Prompt

OPSET = 20
"""Of ONNX's operators; onnxruntime reads it from 1.17 on."""

HEAD_OUTPUTS = {
    "class": "class_logits",
    "tags": "label_logits",
    "mask": "mask_logits",
    "boxes": "boxes",
    "latent": "latent",
    "embedding": "embedding",
}
"""Head -> the output that it gives."""

EXAMPLE_ROWS = 2
"""Rows of the example that a graph is traced with."""

CONDITION_PREFIX = "condition_"
"""What the names of conditions begin with, since an image or boxes also come out."""

Shapes = dict[str, str]


def outputs(prediction: Prediction) -> dict[str, Tensor]:
    """Head -> what it reads, of those that the model has; rows of boxes with score 0 are all 0."""
    found = {
        "class": prediction.class_logits,
        "tags": prediction.label_logits,
        "mask": prediction.mask_logits,
        "boxes": None if prediction.boxes is None else _known(prediction.boxes),
        "latent": None if prediction.posterior is None else prediction.posterior[0],
        "embedding": prediction.embedding,
    }
    return {head: tensor for head, tensor in found.items() if tensor is not None}


def _known(boxes: Tensor) -> Tensor:
    """Which empty cell a row without a box points at is left to the runtime's sorting of equal scores."""
    return boxes * (boxes[..., 5:] > 0)


class PredictorGraph(nn.Module):
    """`[B,C,H,W]` in [-1, 1] -> the outputs of some heads."""

    def __init__(self, model: Model, heads: Sequence[str]) -> None:
        super().__init__()
        self.discriminator = model.networks.side.discriminator
        self.tasks = model.networks.tasks
        self.heads = heads

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Images `[B,C,H,W]` in [-1, 1] -> what each of `heads` reads in them, in order."""
        features, prediction = self.discriminator.trunk(Canvas(image)), Prediction()
        for task in self.tasks:
            task.predict(self.discriminator, features, prediction)
        found = outputs(prediction)
        return tuple(found[head] for head in self.heads)


class GeneratorGraph(nn.Module):
    """Latents `[B,Z]`, and for every modality its raw form and which rows are asked for by it -> image, mask, box maps, boxes."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.generator = model.networks.generator
        self.conditions = copy.copy(model.networks.side.conditions)
        # Tracing writes Python with the modules' names in it, among which `class` is none.
        self.conditions._modules = dict(self.conditions._modules)
        self.conditions.modalities = nn.ModuleDict({_word(name): m for name, m in self.conditions.modalities.items()})

    def forward(self, latent: Tensor, *asked: Tensor) -> tuple[Tensor, ...]:
        """Latents `[B,Z]`, and raw values and `[B]` which are given of each modality -> image, mask, box maps, boxes, if drawn."""
        names = list(self.conditions.modalities)
        prompt = Prompt(
            latent.shape[0], dict(zip(names, asked[::2], strict=True)), dict(zip(names, asked[1::2], strict=True))
        )
        canvas = self.generator(latent, self.conditions(prompt))
        boxes = () if canvas.boxes is None else (canvas.boxes, _known(decode_canvas(canvas.boxes)))
        return (canvas.image.clamp(-1, 1), *(() if canvas.mask is None else (canvas.mask,)), *boxes)


def _word(name: str) -> str:
    return f"{name}_" if name == "class" else name


def check_heads(model: Model, heads: Sequence[str]) -> list[str]:
    """The heads that are asked for, or all that the model has.

    Raises:
        ConfigError: it has no such head.
        UserError: what writes ONNX is not installed.
    """
    known = list(outputs(model.predict(_blank(model).image)))
    if unknown := [head for head in heads if head not in known]:
        raise ConfigError(f"--heads {unknown[0]}: the model has no such head; {suggest(unknown[0], known)}")
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"ONNX files are written with {missing[0]}, which is not installed: pip install 'mtgen[export]'"
        )
    return list(heads) or known


def write_predictor(model: Model, path: Path, heads: Sequence[str] = ()) -> tuple[Shapes, Shapes]:
    """Write the predictor with these heads, or all; what goes in and what comes out."""
    some = check_heads(model, heads)
    return _write(
        model, PredictorGraph(model, some), {"image": _blank(model).image}, [HEAD_OUTPUTS[head] for head in some], path
    )


def write_generator(model: Model, path: Path) -> tuple[Shapes, Shapes]:
    """Write the generator with the conditions' encoders; what goes in and what comes out.

    Raises:
        ConfigError: captions are read by a TorchScript file, which is no part of what can be traced.
    """
    if "caption" in model.conditions and model.config.caption_encoder:
        raise ConfigError(
            "conditions.caption.encoder: a frozen encoder cannot go into an ONNX file; export without --onnx and --heads"
        )
    blank = _blank(model)
    inputs = {"latent": torch.zeros(EXAMPLE_ROWS, model.latent_size)}
    for name in model.conditions:
        inputs[f"{CONDITION_PREFIX}{name}"] = model.prompt_from_batch(blank, name).values[name].clone()
        inputs[f"{CONDITION_PREFIX}{name}_given"] = torch.ones(EXAMPLE_ROWS, dtype=torch.bool)
    drawing = model.networks.generator.canvas_spec
    names = ["image", *(["mask"] if drawing.mask_classes else []), *(["box_maps", "boxes"] if drawing.box_maps else [])]
    return _write(model, GeneratorGraph(model), inputs, names, path)


def _write(
    model: Model, network: nn.Module, inputs: dict[str, Tensor], names: list[str], path: Path
) -> tuple[Shapes, Shapes]:
    """Trace a network and write it as one file, what classes are called in its metadata; the shapes of inputs and outputs."""
    batch = torch.export.Dim("batch", min=1)
    dynamic: Any = tuple({0: batch} for _ in inputs)
    dynamic = (dynamic[0], dynamic[1:]) if isinstance(network, GeneratorGraph) else dynamic
    network.eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's exporter about itself
        logging.getLogger("torch.onnx").setLevel(
            logging.ERROR
        )  # torchvision, which it would like to have, is not needed
        program: Any = torch.onnx.export(
            network,
            tuple(inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=names,
            dynamic_shapes=dynamic,
            verbose=False,
        )
    about = {"classes": model.card.classes, "mask_classes": model.card.mask_classes}
    program.model.metadata_props.update({name: json.dumps(value) for name, value in about.items()})
    program.save(path, external_data=False)
    results = network(*inputs.values())
    return {n: _shape(t) for n, t in inputs.items()}, {n: _shape(t) for n, t in zip(names, results, strict=True)}


def _shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} [{', '.join(['B', *map(str, tensor.shape[1:])])}]"


def _blank(model: Model) -> Batch:
    """A batch that has every component, all of it empty."""
    rows, (height, width), data = EXAMPLE_ROWS, model.size, model.config.data
    number = torch.zeros(rows, dtype=torch.int64)
    here = torch.ones(rows, dtype=torch.bool)
    present = {name: here for name in ("class", "mask", "boxes", "caption", "sound")}
    return Batch(
        position=number,
        image=torch.zeros(rows, model.channels, height, width),
        label=number,
        mask=torch.zeros(rows, height, width, dtype=torch.int64),
        present=present,
        step_position=number,
        step_present=present,
        boxes=torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0]).expand(rows, data.max_boxes, 5),
        labels=torch.ones(rows, len(model.card.classes)),
        caption=torch.ones(rows, model.config.caption_tokens, dtype=torch.int64),
        sound=torch.zeros(rows, data.sound.mels, data.sound.frames),
        domain=number,
    )
