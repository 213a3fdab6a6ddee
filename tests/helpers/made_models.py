"""Real, untrained models of two levels with every condition and task, and runs that hold them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mtgen.checkpointing import checkpoint
from mtgen.checkpointing.retention import Retention
from mtgen.config import validate
from mtgen.models.ema import EMA
from mtgen.models.model import Model, build
from mtgen.schema import DatasetCard

CLASSES = ["zero", "one", "Two", "7"]
TASKS = ("generation", "classification", "segmentation", "detection", "tagging", "alignment", "reconstruction")
CONDITIONS = ("class", "labels", "caption", "sound", "image", "layout", "boxes", "domain")


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def made(
    channels: str = "rgb",
    classes: int = 4,
    tasks: tuple[str, ...] = TASKS,
    conditions: tuple[str, ...] = CONDITIONS,
    resolution: Any = 8,
    generator: dict[str, Any] | None = None,
    discriminator: dict[str, Any] | None = None,
    **settings: Any,
) -> Model:
    values = {
        "name": "test",
        "resolution": resolution,
        "device": "cpu",
        "data": {
            "mixture": [{"path": "sets/horses"}, {"path": "sets/zebras"}],
            "channels": channels,
            "sound": {"rate": 8000, "mels": 16, "seconds": 0.2},
        },
        "generator": {"widths": [8, 8], "latent": 4, **(generator or {})},
        "discriminator": {"widths": [8, 8], "decoder": 4, "embedding": 4, **(discriminator or {})},
        "tasks": {name: settings.get(name, {}) for name in tasks},
        "conditions": {name: {"tokens": 8} if name == "caption" else {} for name in conditions},
    }
    card = DatasetCard(
        name="set",
        classes=CLASSES[:classes],
        mask_classes=["background", "a", "b"],
        source="drawn",
        licence="CC0",
        splits={},
    )
    config = validate(values)
    model = Model(build(config, card), config, card)
    random = torch.Generator().manual_seed(1)
    for network in (model.networks.generator, model.networks.side):
        for parameter in network.parameters():  # zero-initialized layers would make all outputs alike
            parameter += 0.3 * torch.randn(parameter.shape, generator=random)
    return model


def saved(model: Model, folder: Path) -> Path:
    """A run's folder with one checkpoint."""
    averaged = EMA([("generator", model.networks.generator), ("side", model.networks.side)], 0.0).state()
    state = {"card": model.card.model_dump(mode="json")}
    checkpoint.save(folder / "checkpoints", 64, {"ema": averaged}, state, model.config.to_yaml(), keep=Retention(1))
    return folder


def train_on(folder: Path, images: int) -> Path:
    """One more checkpoint of a run, with other weights; its folder."""
    found = checkpoint.verify(max((folder / "checkpoints").glob("0*")))
    tensors = {name: tensor + 0.01 for name, tensor in found.tensors("ema").items()}
    return checkpoint.save(
        folder / "checkpoints", images, {"ema": tensors}, found.state, found.config(), keep=Retention(9)
    )
