"""ONNX export of the generator and the predictor: tensors in and out, any batch size, without mtgen or torch.

Gradient gates and other custom autograd functions exist in training only, so nothing here needs to replace them.
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
from mtgen.models.model import Model, Predictor
from mtgen.networks.center_maps import decode_canvas
from mtgen.registry import suggest
from mtgen.schema import Batch, Prediction, Prompt

OPSET = 20
"""Version of the ONNX operator set; supported by onnxruntime since 1.17."""

HEAD_OUTPUTS = {
    "class": "class_logits",
    "tags": "label_logits",
    "mask": "mask_logits",
    "boxes": "boxes",
    "latent": "latent",
    "embedding": "embedding",
}
"""Head -> name of its output tensor."""

EXAMPLE_ROWS = 2
"""Batch size of the example that a graph is traced with."""

CONDITION_PREFIX = "condition_"
"""Prefix of condition inputs; it keeps the inputs image and boxes apart from the outputs of these names."""

Shapes = dict[str, str]


def outputs(prediction: Prediction) -> dict[str, Tensor]:
    """Predictions by head, for the heads that the model has; boxes with score 0 are set to 0."""
    found = {
        "class": prediction.class_logits,
        "tags": prediction.label_logits,
        "mask": prediction.mask_logits,
        "boxes": None if prediction.boxes is None else _zero_empty_boxes(prediction.boxes),
        "latent": None if prediction.posterior is None else prediction.posterior[0],
        "embedding": prediction.embedding,
    }
    return {head: tensor for head, tensor in found.items() if tensor is not None}


def _zero_empty_boxes(boxes: Tensor) -> Tensor:
    """Set rows without a box to 0, since the cell that they point at depends on how the runtime sorts equal scores."""
    return boxes * (boxes[..., 5:] > 0)


class PredictorGraph(nn.Module):
    """The predictor with some of its heads: images `[B,C,H,W]` in [-1, 1] -> the outputs of `heads`, in order."""

    def __init__(self, model: Model, heads: Sequence[str]) -> None:
        super().__init__()
        self.predictor = Predictor(model.networks.side.discriminator, model.networks.tasks)
        self.heads = heads

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Images `[B,C,H,W]` in [-1, 1] -> the output of each of `heads`."""
        found = outputs(self.predictor(image))
        return tuple(found[head] for head in self.heads)


class GeneratorGraph(nn.Module):
    """The generator with the condition encoders: latents and conditions -> image, mask, box maps, boxes."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.generator = model.networks.generator
        self.conditions = copy.copy(model.networks.side.conditions)
        # Tracing generates Python code with the modules' names in it, where `class` is a keyword.
        self.conditions._modules = dict(self.conditions._modules)
        modalities = self.conditions.modalities.items()
        self.conditions.modalities = nn.ModuleDict({_identifier(name): module for name, module in modalities})

    def forward(self, latent: Tensor, *conditions: Tensor) -> tuple[Tensor, ...]:
        """Generate a canvas.

        Args:
            latent: `[B,Z]`.
            conditions: for each modality in turn its raw values and `[B]` bool, the rows in which it is given.

        Returns:
            Image in [-1, 1], and mask, box maps and boxes if the model generates them.
        """
        names = list(self.conditions.modalities)
        values, given = (dict(zip(names, conditions[start::2], strict=True)) for start in (0, 1))
        canvas = self.generator(latent, self.conditions(Prompt(latent.shape[0], values, given)))
        boxes = () if canvas.boxes is None else (canvas.boxes, _zero_empty_boxes(decode_canvas(canvas.boxes)))
        return (canvas.image.clamp(-1, 1), *(() if canvas.mask is None else (canvas.mask,)), *boxes)


def _identifier(name: str) -> str:
    return f"{name}_" if name == "class" else name


def check_heads(model: Model, heads: Sequence[str]) -> list[str]:
    """Check that a model has these heads and that ONNX files can be written.

    Returns:
        `heads`, or all heads of the model if it is empty.

    Raises:
        ConfigError: the model has no such head, or its backbone is a TorchScript file, which cannot be traced.
        UserError: the packages that write ONNX are not installed.
    """
    backbone = model.networks.side.discriminator.backbone
    if backbone is not None and backbone.is_script:
        raise ConfigError(
            "discriminator.backbone: a TorchScript file cannot be exported to ONNX; export without --onnx and --heads, "
            "or train with a file of mtgen weights convert"
        )
    known = list(outputs(model.predict(_blank_batch(model).image)))
    if unknown := [head for head in heads if head not in known]:
        raise ConfigError(f"--heads {unknown[0]}: is not a head of this model; {suggest(unknown[0], known)}")
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"ONNX files are written with {missing[0]}, which is not installed: pip install 'mtgen[export]'"
        )
    return list(heads) or known


def write_predictor(model: Model, path: Path, heads: Sequence[str] = ()) -> tuple[Shapes, Shapes]:
    """Write the predictor with these heads, or all of them; returns the shapes of inputs and outputs."""
    some = check_heads(model, heads)
    image = _blank_batch(model).image
    return _write(model, PredictorGraph(model, some), {"image": image}, [HEAD_OUTPUTS[head] for head in some], path)


def write_generator(model: Model, path: Path) -> tuple[Shapes, Shapes]:
    """Write the generator with the condition encoders; returns the shapes of inputs and outputs.

    Raises:
        ConfigError: the caption encoder is a TorchScript file, which cannot be traced.
    """
    if "caption" in model.conditions and model.config.caption_encoder:
        raise ConfigError(
            "conditions.caption.encoder: a frozen encoder cannot be exported to ONNX; export without --onnx and --heads"
        )
    blank = _blank_batch(model)
    inputs = {"latent": torch.zeros(EXAMPLE_ROWS, model.latent_size)}
    for name in model.conditions:
        inputs[f"{CONDITION_PREFIX}{name}"] = model.prompt_from_batch(blank, name).values[name].clone()
        inputs[f"{CONDITION_PREFIX}{name}_given"] = torch.ones(EXAMPLE_ROWS, dtype=torch.bool)
    spec = model.networks.generator.canvas_spec
    names = ["image", *(["mask"] if spec.mask_classes else []), *(["box_maps", "boxes"] if spec.box_maps else [])]
    return _write(model, GeneratorGraph(model), inputs, names, path)


def _write(
    model: Model, network: nn.Module, inputs: dict[str, Tensor], names: list[str], path: Path
) -> tuple[Shapes, Shapes]:
    """Trace a network and write it as one file, with the class names as metadata.

    Returns:
        The shapes of inputs and outputs by name.
    """
    batch = torch.export.Dim("batch", min=1)
    dynamic: Any = tuple({0: batch} for _ in inputs)
    dynamic = (dynamic[0], dynamic[1:]) if isinstance(network, GeneratorGraph) else dynamic
    network.eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's exporter warns about its own deprecations
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # else it asks for torchvision, which is not needed
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


def _blank_batch(model: Model) -> Batch:
    """An example batch in which every component is present and blank."""
    rows, (height, width), data = EXAMPLE_ROWS, model.size, model.config.data
    number = torch.zeros(rows, dtype=torch.int64)
    present = {
        name: torch.ones(rows, dtype=torch.bool) for name in ("class", "mask", "boxes", "tags", "caption", "sound")
    }
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
