"""A trained model for use in a program: `mtgen.load`.

It needs neither Ray, DeepSpeed nor MLflow, and DALI only for sounds.
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mtgen.errors import ConfigError, DataError
from mtgen.inference.box_overlay import MIN_BOX_SCORE, PixelBox, to_pixel_boxes
from mtgen.inference.inputs import InMemoryFile, InputImage, load_batches, read_file
from mtgen.inference.predict import PREDICT_BATCH_SIZE, predict_images, save_picture
from mtgen.inference.prompt import ParsedPrompt, PromptRequest, parse_interpolation_ends, parse_request
from mtgen.inference.sample import check_truncation, interpolate_samples
from mtgen.inference.translate import target_prompt, translate_images
from mtgen.models.loading import find_model, load_run
from mtgen.models.model import Model
from mtgen.models.sampling import generate
from mtgen.networks.center_maps import decode_canvas
from mtgen.schema import Canvas, DatasetCard, Prompt
from mtgen.shards.input_files import FileLike
from mtgen.utils import counter_rng
from mtgen.visualization.grids import to_pictures

Picture = str | Path | InMemoryFile | Image.Image | NDArray[np.uint8]
"""An image: a PNG, JPEG or WebP file, its bytes, a Pillow image, or a uint8 array.

An array is `[H,W]` or `[H,W,1]` (gray) or `[H,W,3]` (RGB).
"""
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""Pillow modes that PNG supports."""
Words = str | Sequence[str]
"""One value of a condition, or several to cycle through."""
Files = str | FileLike | Sequence[str | FileLike]
"""One file, or several to cycle through."""


@dataclass
class LabeledImages:
    """Images with their labels; every list has one entry per image.

    Attributes:
        images: mode `L` or `RGB`. For a predicted image, the part that the model saw: cropped, not resized.
        classes: name of the prompted or predicted class; `None` if there is none, or several.
        masks: `[h,w]` uint8 of the image's size, numbers of `mask_classes`; `None` if the model has no masks.
        boxes: in pixels of the image; `None` if the model has no boxes.
        rows: the labels as JSON objects. For a predicted image, in pixels of the whole image, where `seen` is the part
            that the model saw.
        card: names of classes and mask classes.
        names: the prompt of each image in words; empty without prompts.
    """

    images: list[Image.Image]
    classes: list[str | None]
    masks: list[NDArray[np.uint8] | None]
    boxes: list[list[PixelBox] | None]
    rows: list[dict[str, Any]]
    card: DatasetCard
    names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def save(self, folder: str | Path) -> Path:
        """Write `000000.png`, its mask `000000-mask.png`, ... and all rows as `labels.jsonl`.

        Existing files are replaced.

        Returns:
            The folder.

        Raises:
            UserError: the folder cannot be written.
        """
        folder, lines = Path(folder), []
        for number, (image, mask, row) in enumerate(zip(self.images, self.masks, self.rows, strict=True)):
            names = {"image": f"{number:06d}.png"} | ({} if mask is None else {"mask": f"{number:06d}-mask.png"})
            save_picture(image, folder / names["image"])
            if mask is not None:
                save_picture(Image.fromarray(mask), folder / names["mask"])
            lines.append(json.dumps(row | names, ensure_ascii=False) + "\n")
        (folder / "labels.jsonl").write_text("".join(lines), encoding="utf-8")
        return folder


class TrainedModel:
    """A run or an exported model: generates labeled images, predicts labels of images, translates images.

    Attributes:
        model: the networks, for work with tensors instead of pictures.
        images: number of images seen in training.
    """

    def __init__(self, model: Model, images: int) -> None:
        self.model = model
        self.images = images

    @property
    def card(self) -> DatasetCard:
        """Names of classes and mask classes."""
        return self.model.card

    @property
    def conditions(self) -> list[str]:
        """Modalities that images can be conditioned on."""
        return self.model.conditions

    @property
    def tasks(self) -> list[str]:
        """Tasks that the model was trained on."""
        return [task.name for task in self.model.networks.tasks]

    def __repr__(self) -> str:
        height, width = self.model.size
        by = f"conditioned on {', '.join(self.conditions)}" if self.conditions else "unconditional"
        return f"<mtgen model of {width}x{height}, {', '.join(self.tasks)}; {by}; {self.images:,} images seen>"

    def sample(
        self,
        n: int = 1,
        class_: Words = (),
        *,
        caption: Words = (),
        sound: Files = (),
        image: Files = (),
        layout: Files = (),
        domain: Words = (),
        seed: int = 0,
        truncation: float = 1.0,
        score: float = MIN_BOX_SCORE,
    ) -> LabeledImages:
        """Generate `n` images with their masks and boxes, as `mtgen sample` does.

        Several values of a condition are combined with every value of the others, and the images cycle through the
        combinations. Without any condition they cycle through all classes. The latent of image i is a function of
        (seed, i) only.

        Args:
            class_: name or number; "a+b": both in one image.
            sound, image, layout: files; a layout is a mask (PNG) or boxes (JSON).
            domain: name or number of a data set in the run's mixture.
            truncation: 0 (the most probable image, always the same) to 1 (full diversity).
            score: minimum score of a box.

        Raises:
            ConfigError: the model was not trained on a condition, a class or domain does not exist, or a number is
                out of range.
            DataError: a file cannot be read.
        """
        words = [[str(value) for value in _as_tuple(some)] for some in (class_, caption, domain)]
        files = [[_as_file(value) for value in _as_tuple(some)] for some in (sound, image, layout)]
        request = PromptRequest(words[0], words[1], files[0], files[1], files[2], words[2])
        return self.sample_prompt(request, n, seed=seed, truncation=truncation, score=score)

    def sample_prompt(
        self,
        request: PromptRequest,
        n: int = 1,
        *,
        seed: int = 0,
        truncation: float = 1.0,
        score: float = MIN_BOX_SCORE,
    ) -> LabeledImages:
        """Generate images as `sample` does, for a `PromptRequest`.

        Raises:
            ConfigError, DataError: as `sample`.
        """
        check_truncation(truncation)
        if n < 1:
            raise ConfigError(f"n={n}: is out of range; possible: 1 or more")
        parsed = parse_request(self.model, request)
        parts = list(generate(self.model, parsed.prompt, seed, "sample", n=n, truncation=truncation))
        images = self._to_images(Canvas.cat([part.map(lambda tensor: tensor.cpu()) for part, _ in parts]), score)
        images.names = [parsed.names[number % len(parsed)] for number in range(n)]
        for number in range(n):
            images.classes[number], row = self._prompt_row(parsed, number % len(parsed))
            images.rows[number] = row | images.rows[number]
        return images

    def _prompt_row(self, parsed: ParsedPrompt, number: int) -> tuple[str | None, dict[str, Any]]:
        """The class of a row of a prompt, if it has exactly one; and the row as a JSON object."""
        some = [self.card.classes[k] for k in parsed.classes[number]]
        one = some[0] if len(some) == 1 else None
        values = {"class": one, "classes": None if one else some, "caption": parsed.captions[number]}
        return one, {name: value for name, value in values.items() if value}

    def interpolate(
        self,
        first: PromptRequest,
        last: PromptRequest,
        n: int = 9,
        *,
        seeds: tuple[int, int] = (0, 0),
        truncation: float = 1.0,
        score: float = MIN_BOX_SCORE,
    ) -> LabeledImages:
        """Generate `n` images that interpolate from the request `first` to `last`.

        Each end is the first sample of its request and seed.

        Raises:
            ConfigError, DataError: as `sample`.
        """
        check_truncation(truncation)
        if n < 2:
            raise ConfigError(f"n={n}: interpolation needs at least 2 images")
        ends = parse_interpolation_ends(self.model, first, last)
        start = torch.zeros(1, dtype=torch.int64)
        latents = [
            counter_rng.normal(seed, "sample", start, (self.model.latent_size,), self.model.device)
            for seed in dict.fromkeys(seeds)
        ]
        canvas = interpolate_samples(self.model, ends.prompt, torch.cat(latents), n, truncation)
        return self._to_images(canvas.map(lambda tensor: tensor.cpu()), score)

    def predict(self, images: Picture | Sequence[Picture], *, score: float = MIN_BOX_SCORE) -> LabeledImages:
        """Predict labels of images; `rows` has class, tags with probabilities, and boxes with scores.

        Args:
            score: minimum score of a box.

        Raises:
            DataError: an image cannot be read; names it.
        """
        found = LabeledImages([], [], [], [], [], self.card)
        for prediction in predict_images(self.model, _inputs(images), score):
            if prediction.error is not None or prediction.crop is None:
                raise DataError(str(prediction.error))
            mask, crop, boxes = prediction.mask_picture(), prediction.crop, prediction.boxes
            found.images.append(crop.picture)
            found.classes.append(None if prediction.number is None else self.card.classes[prediction.number])
            found.masks.append(None if mask is None else np.asarray(mask))
            found.boxes.append(None if boxes is None else [box.shifted(-crop.left, -crop.top) for box in boxes])
            found.rows.append(prediction.row(self.card))
        return found

    def reconstruct(self, images: Picture | Sequence[Picture], *, score: float = MIN_BOX_SCORE) -> LabeledImages:
        """Reconstruct images from their predicted latents and, for a class-conditional model, predicted classes.

        Raises:
            ConfigError: the model was not trained to reconstruct.
            DataError: an image cannot be read; names it.
        """
        if "reconstruction" not in self.tasks:
            raise ConfigError(
                f"the run was not trained to reconstruct (tasks.reconstruction); its tasks: {', '.join(self.tasks)}"
            )
        canvases = []
        for found, inputs in load_batches(_inputs(images), self.model.channels, self.model.size, PREDICT_BATCH_SIZE):
            if damaged := next((crop for _, crop in found if isinstance(crop, DataError)), None):
                raise damaged
            logits = self.model.predict(inputs).class_logits
            labels = torch.full((len(inputs),), -1) if logits is None else logits.argmax(1).cpu()
            canvas = self.model.reconstruct(inputs, Prompt.of_classes(labels))
            assert canvas is not None  # checked above
            canvases.append(canvas.map(lambda tensor: tensor.cpu()))
        return self._concatenated(canvases, score)

    def translate(
        self, images: Picture | Sequence[Picture], to: str, *, seed: int = 0, score: float = MIN_BOX_SCORE
    ) -> LabeledImages:
        """Translate images into the domain `to`: a data set of the run's mixture, or a class, by name or number.

        Raises:
            ConfigError: the model was not trained to translate, or the domain does not exist.
            DataError: an image cannot be read; names it.
        """
        canvases = []
        for _, canvas in translate_images(self.model, _inputs(images), target_prompt(self.model, to), seed):
            if isinstance(canvas, DataError):
                raise canvas
            canvases.append(canvas)
        return self._concatenated(canvases, score)

    def _concatenated(self, canvases: list[Canvas], score: float) -> LabeledImages:
        if not canvases:
            return LabeledImages([], [], [], [], [], self.card)
        return self._to_images(Canvas.cat(canvases), score)

    def _to_images(self, canvas: Canvas, score: float) -> LabeledImages:
        """Convert a canvas on the CPU to pictures, masks and pixel boxes."""
        images, count = to_pictures(canvas.image), len(canvas.image)
        masks: list[Any] = [None] * count if canvas.mask is None else [*canvas.mask.argmax(1).to(torch.uint8).numpy()]
        boxes: list[Any] = [None] * count
        if canvas.boxes is not None:
            boxes = [to_pixel_boxes(found, *images[0].size, score) for found in decode_canvas(canvas.boxes)]
        rows = [{} if some is None else {"boxes": [box.row(self.card.classes) for box in some]} for some in boxes]
        return LabeledImages(images, [None] * count, masks, boxes, rows, self.card)


def load(path: str | Path, device: str = "auto") -> TrainedModel:
    """Load a trained model.

    Args:
        path: a run's folder or its name under `runs/`, an exported folder or file, or one checkpoint.
        device: "cpu", "cuda", or "auto": cuda if available.

    Raises:
        CheckpointError: the model does not exist, is damaged, or was written by an incompatible version of mtgen.
    """
    return TrainedModel(*load_run(find_model(path), device))


def _as_tuple(value: Any) -> tuple[Any, ...]:
    if isinstance(value, int | Path | InMemoryFile) or (isinstance(value, str) and value):
        return (value,)
    return tuple(value or ())


def _as_file(value: str | FileLike) -> FileLike:
    return Path(value) if isinstance(value, str) else value


def _inputs(images: Picture | Sequence[Picture]) -> Iterator[InputImage]:
    """Convert one or several pictures to inputs."""
    some = [images] if isinstance(images, str | Path | InMemoryFile | Image.Image | np.ndarray) else images
    for number, one in enumerate(some):
        if isinstance(one, str | Path | InMemoryFile):
            yield InputImage(str(one), Path(), partial(read_file, _as_file(one)))
        else:
            yield InputImage(f"image {number}", Path(), partial(_encode, one, f"image {number}"))


def _encode(picture: Any, name: str) -> bytes:
    """Encode a picture in memory as PNG, so that it is processed like any file."""
    if isinstance(picture, np.ndarray):
        pixels = picture[..., 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture
        if pixels.dtype != np.uint8 or (pixels.ndim, pixels.shape[2:]) not in ((2, ()), (3, (3,))) or not pixels.size:
            raise DataError(
                f"{name}: is an array of {list(picture.shape)} {picture.dtype}; "
                "give [H,W] or [H,W,3] of uint8, 0 to 255"
            )
        picture = Image.fromarray(np.ascontiguousarray(pixels))
    if not isinstance(picture, Image.Image):
        raise DataError(
            f"{name}: is a {type(picture).__name__}; "
            "give a file's path, a Pillow image, or an array [H,W] or [H,W,3] of uint8"
        )
    out, upright = io.BytesIO(), ImageOps.exif_transpose(picture)
    (upright if upright.mode in PNG_MODES else upright.convert("RGB")).save(out, "PNG")
    return out.getvalue()
