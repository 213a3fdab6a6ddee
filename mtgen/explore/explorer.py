"""The page's operations on a run."""

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
    """A run with one loaded checkpoint, which answers the page's requests. Not thread-safe.

    Args:
        run: a run's folder or its name under `runs/`, or an exported model.
        device: "cpu", "cuda", or "auto".
        which: a checkpoint, as `mtgen.models.loading.select_checkpoint`; default: the newest intact one.

    Raises:
        CheckpointError: the run or checkpoint does not exist, or is damaged.
    """

    def __init__(self, run: str | Path, device: str = "auto", which: str | None = None) -> None:
        self.folder = find_run(run)
        self.device = device
        self.trained = TrainedModel(*load_run(self.folder, device, which))
        self._newest_tried = self.trained.images

    def about(self) -> dict[str, Any]:
        """Facts about the run, from which the page decides what to offer."""
        model, card = self.trained.model, self.trained.card
        sound, networks = model.config.data.sound, (model.networks.generator, model.networks.side)
        return {
            "run": self.folder.name,
            "images": self.trained.images,
            "total_images": model.config.train.images,
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
            "translation_targets": self._translation_targets(),
            "sound_seconds": sound.seconds,
            "limits": {"n": MAX_IMAGES, "file": MAX_FILE_BYTES, "sound": MAX_SOUND_SECONDS, "seed": MAX_SEED},
            "newer": self.newer_checkpoint(),
        }

    def _translation_targets(self) -> list[str]:
        """Names of the domains that images can be translated into."""
        modality = self.trained.model.translates
        if modality is None:
            return []
        return self.trained.card.classes if modality == "class" else domain_names(self.trained.model.config)

    def newer_checkpoint(self) -> int | None:
        """Images seen at the newest checkpoint, if it is newer than all that were loaded or found damaged."""
        folders = checkpoint.checkpoint_folders(self.folder / "checkpoints")
        newest = max((int(folder.name) for folder in folders), default=0)
        return newest if newest > self._newest_tried else None

    def reload(self) -> dict[str, Any]:
        """Load the newest intact checkpoint and return `about`; the terminal names damaged ones."""
        newest = self.newer_checkpoint() or self._newest_tried
        self.trained = TrainedModel(*load_run(self.folder, self.device))
        self._newest_tried = max(newest, self.trained.images)
        return self.about()

    def sample(self, message: SampleMessage) -> dict[str, Any]:
        """Generate samples; without conditions they cycle through all classes."""
        request = message.prompt.to_prompt_request(self.trained.model.size)
        samples = self.trained.sample_prompt(request, message.n, seed=message.seed, truncation=message.truncation)
        frames = zip(self._frames(samples), samples.names, strict=True)
        return {"pictures": [shown | {"caption": name} for shown, name in frames]}

    def interpolate(self, message: InterpolateMessage) -> dict[str, Any]:
        """Interpolate between two samples."""
        ends = (message.first, message.last)
        first, last = (end.prompt.to_prompt_request(self.trained.model.size) for end in ends)
        seeds = (message.first.seed, message.last.seed)
        samples = self.trained.interpolate(first, last, message.n, seeds=seeds, truncation=message.truncation)
        return {"pictures": self._frames(samples)}

    def predict(self, message: PredictMessage) -> dict[str, Any]:
        """Predict class, tags, mask and boxes of an image, and reconstruct it if the run was trained to."""
        image, card = message.image.to_file(), self.trained.card
        (found,) = predict_images(self.trained.model, [InputImage(image.name, Path(), image.read_bytes)])
        if found.crop is None:
            raise DataError(str(found.error))
        mask, boxes, tags = found.mask_picture(), None, None
        if found.boxes is not None:
            boxes = [box.shifted(-found.crop.left, -found.crop.top) for box in found.boxes]
        if found.tags is not None:
            tags = [[card.classes[number], probability] for number, probability in found.tags]
        reconstructs = "reconstruction" in self.trained.tasks
        return {
            "picture": frame(found.crop.picture, None if mask is None else np.asarray(mask), boxes, card),
            "reconstruction": self._frames(self.trained.reconstruct(image))[0] if reconstructs else None,
            "whole": list(found.crop.whole),
            "seen": list(found.crop.picture.size),
            "classes": [[card.classes[number], probability] for number, probability in found.top_classes],
            "tags": tags,
            "boxes": None if found.boxes is None else [box.row(card.classes) for box in found.boxes],
        }

    def translate(self, message: TranslateMessage) -> dict[str, Any]:
        """Translate an image into each of the domains."""
        image = message.image.to_file()
        pictures = []
        for domain in message.to:
            (shown,) = self._frames(self.trained.translate(image, domain, seed=message.seed))
            pictures.append(shown | {"caption": domain})
        return {"pictures": pictures}

    def layout(self, message: LayoutMessage) -> dict[str, Any]:
        """Decode a mask file as a layout of the run's size: mask classes row by row, 255 is anything."""
        model, file = self.trained.model, message.file.to_file()
        require(model, "layout", file)
        maps = read_mask_layout(file, model.card, model.size)
        classes = torch.where(maps.amax(0) > 0, maps.argmax(0), IGNORE_INDEX)
        return {"mask": classes.flatten().tolist()}

    def _frames(self, images: LabeledImages) -> list[dict[str, Any]]:
        """Generated images in the page's form, with their `mask` (classes row by row) for use as a layout."""
        frames = [frame(*one, self.trained.card) for one in zip(images.images, images.masks, images.boxes, strict=True)]
        for shown, mask in zip(frames, images.masks, strict=True):
            if mask is not None:
                shown["mask"] = base64.b64encode(mask.tobytes()).decode()
        return frames
