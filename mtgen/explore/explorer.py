"""A run that is tried out: what the page may ask it for, and its answers. One call at a time."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtgen.checkpointing import checkpoint
from mtgen.errors import DataError
from mtgen.explore.messages import (
    MAX_FILE_BYTES,
    MAX_IMAGES,
    MAX_SEED,
    MAX_SOUND_SECONDS,
    InterpolateMessage,
    LayoutMessage,
    PredictMessage,
    SampleMessage,
    TranslateMessage,
)
from mtgen.explore.pictures import frame, legends
from mtgen.inference.inputs import InputImage
from mtgen.inference.label_names import domain_names
from mtgen.inference.layouts import read_mask_layout
from mtgen.inference.predict import predict_images
from mtgen.inference.prompt import require
from mtgen.inference.trained_model import LabeledImages, TrainedModel
from mtgen.models.loading import find_run, load_run
from mtgen.schema import IGNORE_INDEX


class Explorer:
    """Answers what the page asks, with the checkpoint that was loaded last.

    Args:
        run: a run's folder or its name under `runs/`; or an exported model.
        device: "cpu", "cuda", or "auto".
        which: a checkpoint, as `mtgen.models.loading.select_checkpoint`; default: the newest that is whole.

    Raises:
        CheckpointError: there is no such run or checkpoint, or it is damaged.
    """

    def __init__(self, run: str | Path, device: str = "auto", which: str | None = None) -> None:
        self.folder = find_run(run)
        self.device = device
        self.trained = TrainedModel(*load_run(self.folder, device, which))
        self._tried = self.trained.images

    def about(self) -> dict[str, Any]:
        """What the page offers: nothing but what the run was trained on."""
        model, card = self.trained.model, self.trained.card
        sound, networks = model.config.data.sound, (model.networks.generator, model.networks.side)
        return {
            "run": self.folder.name,
            "images": self.trained.images,
            "of_images": model.config.train.images,
            "height": model.size[0],
            "width": model.size[1],
            "channels": model.channels,
            "parameters": sum(parameter.numel() for network in networks for parameter in network.parameters()),
            "device": str(model.device),
            "tasks": self.trained.tasks,
            "conditions": self.trained.conditions,
            "classes": card.classes,
            "mask_classes": card.mask_classes,
            "legend": legends(card),
            "domains": domain_names(model.config) if "domain" in self.trained.conditions else [],
            "targets": self._targets(),
            "sound_seconds": sound.seconds,
            "limits": {"n": MAX_IMAGES, "file": MAX_FILE_BYTES, "sound": MAX_SOUND_SECONDS, "seed": MAX_SEED},
            "newer": self.newer_checkpoint(),
        }

    def _targets(self) -> list[str]:
        """What images can be translated into."""
        by = self.trained.model.translates
        return (
            []
            if by is None
            else self.trained.card.classes
            if by == "class"
            else domain_names(self.trained.model.config)
        )

    def newer_checkpoint(self) -> int | None:
        """Images seen at the run's newest checkpoint, where that is newer than those that were loaded or found damaged."""
        newest = max(
            (int(folder.name) for folder in checkpoint.checkpoint_folders(self.folder / "checkpoints")), default=0
        )
        return newest if newest > self._tried else None

    def reload(self) -> dict[str, Any]:
        """Load the newest checkpoint that is whole; damaged ones are named in the terminal. Says what `about` does."""
        newest = self.newer_checkpoint() or self._tried
        self.trained = TrainedModel(*load_run(self.folder, self.device))
        self._tried = max(newest, self.trained.images)
        return self.about()

    def sample(self, asked: SampleMessage) -> dict[str, Any]:
        """Samples; without any wish, every class in turn."""
        request = asked.wish.to_prompt_request(self.trained.model.size)
        drawn = self.trained.sample_prompt(request, asked.n, seed=asked.seed, truncation=asked.truncation)
        return {
            "pictures": [
                shown | {"caption": name} for shown, name in zip(self._frames(drawn), drawn.names, strict=True)
            ]
        }

    def interpolate(self, asked: InterpolateMessage) -> dict[str, Any]:
        """The way from one sample to another."""
        first, last = (end.wish.to_prompt_request(self.trained.model.size) for end in (asked.first, asked.last))
        seeds = (asked.first.seed, asked.last.seed)
        return {
            "pictures": self._frames(
                self.trained.interpolate(first, last, asked.n, seeds=seeds, truncation=asked.truncation)
            )
        }

    def predict(self, asked: PredictMessage) -> dict[str, Any]:
        """Class, tags, mask and boxes of an image, and, where the run reconstructs, the image drawn from its latent."""
        image, card = asked.image.to_file(), self.trained.card
        (found,) = predict_images(self.trained.model, [InputImage(image.name, Path(), image.read_bytes)])
        if found.cut is None:
            raise DataError(str(found.error))
        mask, boxes = found.mask_picture(), None
        if found.boxes is not None:
            boxes = [box.moved(-found.cut.left, -found.cut.top) for box in found.boxes]
        again = self._frames(self.trained.reconstruct(image))[0] if "reconstruction" in self.trained.tasks else None
        return {
            "picture": frame(found.cut.picture, None if mask is None else np.asarray(mask), boxes, card),
            "reconstruction": again,
            "whole": list(found.cut.whole),
            "seen": list(found.cut.picture.size),
            "classes": [[card.classes[number], share] for number, share in found.likely],
            "tags": None if found.tags is None else [[card.classes[number], share] for number, share in found.tags],
            "boxes": None if found.boxes is None else [box.row(card.classes) for box in found.boxes],
        }

    def translate(self, asked: TranslateMessage) -> dict[str, Any]:
        """An image drawn anew in each of the domains."""
        image = asked.image.to_file()
        drawn = [
            self._frames(self.trained.translate(image, to, seed=asked.seed))[0] | {"caption": to} for to in asked.to
        ]
        return {"pictures": drawn}

    def layout(self, asked: LayoutMessage) -> dict[str, Any]:
        """A mask's file as a layout of the run's size: mask classes row by row, 255 where anything may be."""
        model, file = self.trained.model, asked.file.to_file()
        require(model, "layout", file)
        maps = read_mask_layout(file, model.card, model.size)
        classes = torch.where(maps.amax(0) > 0, maps.argmax(0), IGNORE_INDEX)
        return {"mask": classes.flatten().tolist()}

    def _frames(self, drawn: LabeledImages) -> list[dict[str, Any]]:
        """Drawn images as the page has them; `mask`: mask classes row by row, to be asked for as a layout."""
        frames = [frame(*one, self.trained.card) for one in zip(drawn.images, drawn.masks, drawn.boxes, strict=True)]
        for shown, mask in zip(frames, drawn.masks, strict=True):
            if mask is not None:
                shown["mask"] = base64.b64encode(mask.tobytes()).decode()
        return frames
